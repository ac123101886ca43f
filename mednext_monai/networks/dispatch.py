"""The switch between implementations of the network, and the list of those that registered.

- ``"auto"``: the optimized implementations that match the modules to rounding error and were measured to be faster on
  the device in use: on a CPU those of ``backends.cpu``, on a GPU the Triton kernels, but only for networks and inputs
  for which ``mednext tune`` has measured them on this GPU. The plain modules otherwise, and always under tracing,
  scripting and export; under ``torch.compile`` unless the kernels were measured in compiled code.
- ``"plain"``: the modules as written in ``blocks`` and ``mednext``, the readable reference.
- ``"triton"``: the Triton kernels on a GPU, measured or not.

All compute the same function of the same parameters. The environment variable ``MEDNEXT_BACKEND`` sets the initial one.

This module imports none of its neighbors: ``blocks`` and ``mednext`` ask :py:func:`find`, and the packages in
``backends`` call :py:func:`register` when they are imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn as nn

__all__ = [
    "BACKENDS",
    "Implementation",
    "find",
    "get_backend",
    "preferring",
    "register",
    "set_backend",
    "using_backend",
]

BACKENDS = ("auto", "plain", "triton")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {BACKENDS}, got {name!r}.")
    return name


_backend = _checked(os.environ.get("MEDNEXT_BACKEND", "auto"), "the environment variable MEDNEXT_BACKEND")


def get_backend() -> str:
    """Return the backend in use: one of ``BACKENDS``."""
    return _backend


def set_backend(name: str) -> None:
    """
    Set the backend of this process.

    Args:
        name: one of ``BACKENDS``.

    Raises:
        ValueError: if it is none of them.
    """
    global _backend
    _backend = _checked(name, "name")


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Set the backend within a ``with`` block; arguments and errors as for :py:func:`set_backend`."""
    before = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


_preferred = threading.local()  # its attribute backend, if set, is asked in this thread


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """
    Compute within a ``with`` block with another backend, in this thread only.

    For implementations of a whole network that hand its blocks to another backend, also where several threads run
    networks, as ``torch.nn.DataParallel`` does. Code that is compiled, in one thread, changes the backend itself, which
    every version of ``torch.compile`` can follow.

    Args:
        name: one of ``BACKENDS``.
    """
    if torch.compiler.is_compiling():
        with using_backend(name):
            yield
        return
    before = getattr(_preferred, "backend", None)
    _preferred.backend = _checked(name, "name")
    try:
        yield
    finally:
        _preferred.backend = before


class Implementation(Protocol):
    """
    What a backend registers: any object, such as a module, with these two functions.

    For a block, ``run`` must not store the expanded tensor for the backward pass: with ``use_checkpoint="expansion"``
    it is used as it is.
    """

    @property
    def takes(self) -> Callable[[nn.Module, torch.Tensor], bool]:
        """Return whether ``run`` computes what the module's own operations compute for the input."""

    @property
    def run(self) -> Callable[[Any, torch.Tensor], Any]:
        """Compute the module's output for an input that ``takes`` accepts."""


_implementations: list[tuple[str, Implementation]] = []


def register(backend: str, implementation: Implementation) -> None:
    """Add an implementation to those of a backend; the first one that takes a module and input computes it."""
    _implementations.append((_checked(backend, "backend"), implementation))


def find(module: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], Any] | None:
    """
    Return the function with which the backend in use computes ``module(x)``.

    Nothing is remembered between calls, since hooks, parametrizations and replaced submodules change the answer.

    Args:
        module: a block or a network.
        x: its input.

    Returns:
        a function of ``x``, or ``None`` where the module's own operations are to be used.
    """
    if not torch.jit.is_tracing():
        preferred = None if torch.compiler.is_compiling() else getattr(_preferred, "backend", None)
        wanted = preferred or _backend
        for backend, implementation in _implementations:
            if backend == wanted and implementation.takes(module, x):
                return partial(implementation.run, module)
    return None
