"""Running the benchmark again under other settings of the C library's allocator.

By default glibc takes every large block from the kernel and gives it back after use, so that each activation is paged
in anew. The tuned settings keep memory in the process; they only count when set before it starts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["environment", "is_active", "run_again"]

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def environment(allocator: str) -> dict[str, str]:
    """
    Return this process's environment with the settings of an allocator, "default" or "tuned".

    Raises:
        ValueError: when the C library is another than glibc, which alone reads them.
    """
    if allocator == "tuned" and platform.libc_ver()[0] != "glibc":
        raise ValueError("--allocator tuned needs Linux with glibc.")
    others = {name: value for name, value in os.environ.items() if name not in TUNED}
    return {**others, **(TUNED if allocator == "tuned" else {})}


def is_active(allocator: str) -> bool:
    """Whether this process was started with the settings of this allocator."""
    wanted = environment(allocator)
    return all(os.environ.get(name) == wanted.get(name) for name in TUNED)


def run_again(arguments: Sequence[str], allocator: str) -> dict:
    """
    Run the benchmark in a process with the settings of an allocator and return what it wrote to ``benchmark.json``.

    Raises:
        RuntimeError: when it fails; it has said why on the error output.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mednext_monai.benchmark", *arguments]
        command += ["--allocator", allocator, "--output", folder]
        result = subprocess.run(command, env=environment(allocator), stdout=subprocess.DEVNULL)
        if result.returncode:
            raise RuntimeError(f"the run with --allocator {allocator} ended with exit status {result.returncode}.")
        return json.loads((Path(folder) / "benchmark.json").read_text())
