"""The option ``cpu_amp``: training and validation in bfloat16 on a CPU, with checkpoints as without it."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.inferers import autocast
from mednext_monai.networks.backends.cpu import precision


@pytest.fixture
def pays(monkeypatch):
    """Make every processor one on which bfloat16 is faster."""
    for module in (autocast, precision):
        monkeypatch.setattr(module, "bfloat16_pays", lambda: True)


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items())


def test_a_training_in_bfloat16_differs_by_rounding_and_goes_on_in_float32(train, pays):
    short = {"val_interval": 1, "learning_rate": 1e-3}
    expected = train("float32", epochs=1, **short)
    found = train("bfloat16", epochs=1, cpu_amp="true", **short)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert 0 < difference(found, expected) < 5e-3  # two steps change a weight by 2e-3 at most
    assert train("bfloat16", epochs=2, resume=True, **short).keys() == expected.keys()


def test_where_it_does_not_pay_it_changes_nothing(train, monkeypatch):
    for module in (autocast, precision):
        monkeypatch.setattr(module, "bfloat16_pays", lambda: False)
    short = {"epochs": 1, "pseudo_dice_batches": 0, "val_interval": 9}
    expected = train("float32", **short)
    assert difference(train("wanted", cpu_amp=True, **short), expected) == 0


@pytest.mark.slow
def test_compiled_it_is_the_same_training(train, pays):
    short = {"epochs": 1, "pseudo_dice_batches": 0, "val_interval": 9, "cpu_amp": True}
    expected = train("eager", **short)
    found = train("compiled", compile="true", **{"compiler::backend": "eager"}, **short)
    assert difference(found, expected) < 5e-3
