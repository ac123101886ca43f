"""Functions of a test file in several processes, and what the system says about processes.

A process that multiprocessing spawns imports the module of its function by name. In pytest's importlib mode, test files
have a name only within pytest itself. Here the process runs the file.
"""

from __future__ import annotations

import runpy
import socket
import time
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

__all__ = ["children_of", "free_port", "is_running", "spawn", "wait_for"]


def spawn(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call ``function(rank, *arguments)`` of a test file, one rank per process, and wait for all of them."""
    file, name = function.__code__.co_filename, function.__name__
    torch.multiprocessing.spawn(_call, (file, name, arguments), nprocs=processes)


def _call(rank: int, file: str, name: str, arguments: tuple[Any, ...]) -> None:
    runpy.run_path(file)[name](rank, *arguments)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Return the condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process, from ``/proc``."""
    try:
        return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie, from ``/proc``."""
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    """Return a port of this computer that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
