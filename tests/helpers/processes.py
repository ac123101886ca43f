"""Functions of a test file in several processes.

A process that multiprocessing spawns imports the module of its function by name. In pytest's importlib mode, test files
have a name only within pytest itself. Here the process runs the file.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

__all__ = ["spawn"]


def spawn(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call ``function(rank, *arguments)`` of a test file, one rank per process, and wait for all of them."""
    file, name = function.__code__.co_filename, function.__name__
    torch.multiprocessing.spawn(_call, (file, name, arguments), nprocs=processes)


def _call(rank: int, file: str, name: str, arguments: tuple[Any, ...]) -> None:
    runpy.run_path(file)[name](rank, *arguments)
