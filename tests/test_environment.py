"""What a run says about its computer."""

from __future__ import annotations

import platform

import torch

from mednext_monai.environment import hardware, package_versions


def test_versions_and_hardware_are_those_of_this_process():
    assert package_versions()["torch"] == torch.__version__
    found = hardware(torch.device("cpu"))
    assert found["device"] == "cpu" and found["cores"] >= 1
    assert platform.node() not in [str(value) for value in found.values()]
