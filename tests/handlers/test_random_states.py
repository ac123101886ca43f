"""Seeds that make a run reproducible, and random states that survive a checkpoint."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mednext_monai.handlers import RandomStates, set_seed
from mednext_monai.weights import read_checkpoint, write_checkpoint


def test_random_states_continue_after_a_round_trip_through_a_file(tmp_path):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random()

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    np.random.randn()  # leaves the second of a pair of normal numbers in the state
    write_checkpoint(RandomStates().state_dict(), tmp_path / "a.pt")
    expected = draws()
    state = read_checkpoint(tmp_path / "a.pt")
    RandomStates(is_main_process=False).load_state_dict(state)
    assert draws() != expected
    RandomStates().load_state_dict(state)
    assert draws() == expected


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
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294901759"):
            set_seed(wrong)
    torch.backends.cudnn.benchmark = False
