"""Runs the sections, here or in a process with other settings of glibc's malloc, and writes the results.

By default glibc maps every large block anew and unmaps it after use, so that each activation is paged in again. The
tuned settings keep memory in the process. They take effect only if set before the process starts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from .augmentation import measure_augmentation
from .contestants import build
from .load import busy_processes
from .memory import measure_memory
from .network import measure_networks, measure_window
from .prediction import measure_prediction
from .preprocessing import measure_preprocessing
from .report import as_markdown, as_text, describe_machine, write_json
from .timing import Measurement

__all__ = ["environment", "run"]

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
SECTIONS = {
    "forward": partial(measure_networks, training=False),
    "training": partial(measure_networks, training=True),
    "memory": measure_memory,
    "window": measure_window,
    "augmentation": measure_augmentation,
    "preprocessing": measure_preprocessing,
    "prediction": measure_prediction,
}


def run(options: Namespace, arguments: Sequence[str]) -> None:
    """Measure, print the table, and write ``benchmark.json`` and ``benchmark.png``; ``arguments`` gave ``options``."""
    _prepare(options)
    allocators = ["default", "tuned"] if options.allocator == "both" else [options.allocator]
    environments = {allocator: environment(allocator) for allocator in allocators}
    file, machine, measurements = Path(options.output) / "benchmark.json", describe_machine(options.device), []
    machine["load"] = options.load
    for allocator, wanted in environments.items():
        here = len(allocators) == 1 and all(os.environ.get(name) == wanted.get(name) for name in TUNED)
        for measurement in _measure(options) if here else _measure_again(arguments, allocator):
            measurement.allocator = allocator
            measurements.append(measurement)
            write_json(file, machine, arguments, measurements)
    print(as_markdown(machine, arguments, measurements) if options.markdown else as_text(machine, measurements))
    print(f"wrote {file}", file=sys.stderr)
    try:
        from .plot import draw
    except ImportError:
        print("no chart: matplotlib is not installed; pip install 'mednext-monai[benchmark]'", file=sys.stderr)
    else:
        draw(file.with_suffix(".png"), machine, measurements)
        print(f"wrote {file.with_suffix('.png')}", file=sys.stderr)


def environment(allocator: str) -> dict[str, str]:
    """Return this process's environment with the settings of an allocator, "default" or "tuned"."""
    if allocator == "tuned" and platform.libc_ver()[0] != "glibc":
        raise ValueError("--allocator tuned needs Linux with glibc.")
    others = {name: value for name, value in os.environ.items() if name not in TUNED}
    return others | (TUNED if allocator == "tuned" else {})


def _prepare(options: Namespace) -> None:
    """Set threads and device, and raise at once what would otherwise fail late in the run."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU.")
        torch.backends.cudnn.benchmark = True  # as the bundles train
    if options.upstream:
        build(options, options.variants[0], ["original"], training=False)


def _measure(options: Namespace) -> Iterator[Measurement]:
    with busy_processes(options.load):
        for section in options.sections:
            print(f"{section} ...", file=sys.stderr, flush=True)
            for measurement in SECTIONS[section](options):
                print(f"  {measurement.case}", file=sys.stderr, flush=True)
                yield measurement


def _measure_again(arguments: Sequence[str], allocator: str) -> list[Measurement]:
    """Run the benchmark in a process with the settings of an allocator, and return its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mednext_monai.benchmark", *arguments]
        command += ["--allocator", allocator, "--output", folder]
        result = subprocess.run(command, env=environment(allocator), stdout=subprocess.DEVNULL)
        if result.returncode:
            raise RuntimeError(f"the run with --allocator {allocator} failed with exit status {result.returncode}.")
        found = json.loads((Path(folder) / "benchmark.json").read_text())["measurements"]
    return [Measurement.from_dict(values) for values in found]
