"""Tiny networks for the tests of ``mednext tune``, and the Triton backend in torch operations on a CPU."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.networks import MedNeXt
from mednext_monai.networks.backends.cpu import network as cpu_network
from mednext_monai.networks.backends.triton import forward, measured, table
from mednext_monai.tuning.cases import Case

__all__ = ["NETWORK", "let_cpu_tensors_pass", "make_case", "make_network", "trial_key"]

NETWORK = {
    "in_channels": 1,
    "out_channels": 3,
    "base_channels": 4,
    "expansion_ratio": 2,
    "block_counts": [1] * 9,
    "deep_supervision": True,
}


def make_case(**changes) -> Case:
    return Case(**{"network": NETWORK, "shape": [1, 1, 32, 32, 32], "autocast": "float16", **changes})


def make_network(**changes) -> MedNeXt:
    torch.manual_seed(0)
    return MedNeXt(**{**NETWORK, **changes})


def let_cpu_tensors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend take CPU tensors, which its operators compute by torch; all around the kernels is the same."""
    monkeypatch.setattr(measured, "_interpreting", True)
    monkeypatch.setattr(cpu_network, "takes", lambda network, x: False)
    monkeypatch.setattr(forward, "_check_device", lambda x: None)


def trial_key(network: MedNeXt, x: torch.Tensor, compiled: bool = False) -> table.Key:
    found = measured.key(network, x, compiled)
    assert found is not None
    return found
