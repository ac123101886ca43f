"""What the benchmark ran on and with: the numbers mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

import monai
import torch

import mednext_monai
from mednext_monai.networks import get_backend

__all__ = ["describe_machine", "one_line"]


def describe_machine(device: str) -> dict:
    """Return processor, threads, versions and, when it is used, the GPU."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "cpu": _cpu_name(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "mednext_monai": mednext_monai.__version__,
        "backend": get_backend(),
        "preloaded": os.environ.get("LD_PRELOAD", ""),  # perhaps another allocator
        "date": time.strftime("%Y-%m-%d"),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        machine["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        machine["cuda"], machine["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return machine


def one_line(machine: dict) -> str:
    """Return the machine as a line of text."""
    processor = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    parts = ([machine["gpu"]] if "gpu" in machine else []) + [processor]
    parts += [f"torch {machine['torch']}, MONAI {machine['monai']}", f"backend {machine['backend']}"]
    return "; ".join(parts)


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()
