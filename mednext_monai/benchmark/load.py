"""Other work on the machine while the benchmark measures: processes that keep a core busy each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["busy_processes"]

# Ends by itself if the benchmark is killed: it then has another parent.
LOOP = """
import os
import sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen]]:
    """Keep ``count`` processes of one thread busy within a ``with`` block, and yield them."""
    command = [sys.executable, "-S", "-c", LOOP, str(os.getpid())]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
