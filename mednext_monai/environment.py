"""Versions and hardware of a run, for what it writes. Importing this module imports neither torch nor MONAI."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from . import __version__

__all__ = ["hardware", "package_versions"]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that determine the results."""
    packages = {name: version(name) for name in ("monai", "torch", "numpy", "scipy", "nibabel")}
    return {"mednext_monai": __version__, **packages, "python": platform.python_version()}


def hardware(device: Any = "cpu") -> dict[str, Any]:
    """
    Describe the computer that trains: no name of a host or a user is part of it.

    Args:
        device: the torch device. Defaults to ``"cpu"``.

    Returns:
        ``system``, ``machine``, ``cores``, ``device``, and for a GPU its ``gpu``, ``gpu_memory_gib`` and ``cuda``.
    """
    import torch

    device = torch.device(device)
    found = {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = round(properties.total_memory / 2**30, 1)
        found |= {"gpu": properties.name, "gpu_memory_gib": memory, "cuda": torch.version.cuda}
    return found
