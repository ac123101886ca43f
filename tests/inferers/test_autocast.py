"""A network on a patch, in bfloat16 on a CPU if that is wanted and faster."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from mednext_monai.inferers import AutocastInferer


@pytest.mark.parametrize("wanted, pays, axes", [(True, True, 3), (True, True, 2), (True, False, 3), (False, True, 3)])
@pytest.mark.parametrize("has_several", [False, True])
def test_the_network_runs_in_bfloat16_only_if_wanted_and_faster_and_returns_float32(wanted, pays, axes, has_several):
    seen, is_used = [], wanted and pays and axes == 3

    def network(x: torch.Tensor, factor: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        y = factor * x @ x
        return (y, y) if has_several else y

    x = torch.rand(1, 1, *[8] * axes)
    with patch("mednext_monai.inferers.autocast.bfloat16_pays", return_value=pays):
        result = AutocastInferer(wanted)(x, network, factor=2)
    assert seen == [is_used] and not torch.is_autocast_enabled("cpu")
    for y in result if has_several else (result,):
        assert y.dtype == torch.float32
        assert torch.equal(y, 2 * x @ x) is not is_used
        torch.testing.assert_close(y, 2 * x @ x, rtol=0.02, atol=0.02)


def test_cpu_amp_is_a_switch():
    assert AutocastInferer("true").cpu_amp is True
    with pytest.raises(ValueError, match="cpu_amp must be true or false"):
        AutocastInferer("bf16")
