"""The device of the tests for a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("gpu")


@pytest.fixture
def device() -> torch.device:
    """The GPU; with ``MEDNEXT_TEST_DEVICE=cpu`` the CPU, to run what can run there. Skips if there is no GPU."""
    found = torch.device(os.environ.get("MEDNEXT_TEST_DEVICE", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and PyTorch finds none (MEDNEXT_TEST_DEVICE=cpu runs on a CPU what can run there)")
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for what a CPU cannot run."""
    if device.type != "cuda":
        pytest.skip("needs a GPU: a CPU cannot run this")
    return device
