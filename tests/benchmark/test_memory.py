"""Promise of the section memory: the peak is that of the step."""

from __future__ import annotations

import torch

from mednext_monai.benchmark.memory import peak_of


def test_peak_memory_is_that_of_the_step_and_not_of_what_came_before():
    torch.ones(64 * 2**18).sum()  # 64 MiB, gone
    peak = peak_of(lambda: torch.ones(32 * 2**18).sum(), torch.device("cpu"))
    assert 31 < peak < 48
