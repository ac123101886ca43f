"""Folds, data lists, stored cases, seeds, waiting for each other, and the writing of predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mednext_monai.utils import set_seed


def test_a_seed_repeats_and_none_draws_a_fresh_one(caplog):
    caplog.set_level("INFO")
    draws = []
    for seed in (5, 5, None, None):
        draws.append((set_seed(seed), torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1] and draws[0][0] == 5
    assert len(set(draws[1:])) == 3
    assert f"seed {draws[3][0]}, drawn for this run" in caplog.text
    set_seed(draws[3][0])  # the seed that was logged gives the same numbers
    assert torch.rand(1).item() == draws[3][1]
    for wrong in (-1, 0.5, True, "7"):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            set_seed(wrong)
    torch.backends.cudnn.benchmark = False
