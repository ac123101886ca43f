"""What the benchmark's tests share: a tiny run, and recorded measurements."""

from __future__ import annotations

import json
from pathlib import Path

from mednext_monai.benchmark.__main__ import main
from mednext_monai.benchmark.timing import Measurement

MACHINE = {"cpu": "a processor", "cores": 2, "threads": 2, "torch": "2", "monai": "1", "backend": "auto"}
TINY = ["--variants", "S_k3", "--size", "32", "--base_channels", "2", "--repeats", "2", "--threads", "1"]
TINY += ["--volume", "40x32x32", "--roi", "32", "--patch_size", "16", "--patches", "2", "--workers", "0"]
TINY += ["--case_shape", "24x24x12", "--scan", "60x44x40"]


def run(folder: Path, *arguments: str) -> list[dict]:
    """Run the benchmark and return its measurements as JSON has them."""
    assert main([*TINY, "--output", str(folder), *arguments]) == 0
    return json.loads((folder / "benchmark.json").read_text())["measurements"]


def measurements() -> list[Measurement]:
    values = {"ours": [1.0, 1.25], "plain": [2.0, 2.5], "monai": [4.0, 4.5]}
    agreement = {"ours": {"output": 1e-6}, "plain": {"output": 0.0}, "monai": {"output": 3e-6}}
    forward = Measurement("forward", "S k3, 64^3", "s", values, agreement, work=0.5, work_unit="Mvoxel/s")
    memory = Measurement("memory", "forward S k3, 64^3", "MiB", {"ours": [100.0], "monai": [250.0]}, allocator="tuned")
    return [forward, memory]
