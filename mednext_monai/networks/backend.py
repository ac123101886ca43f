"""Which implementation computes the network: one switch for the process, in the manner of ``torch.backends``.

- ``"auto"``: what is exact and was measured to be faster on the device at hand; the plain modules everywhere else, and
  always under tracing, scripting, export and ``torch.compile``.
- ``"plain"``: the modules as written in ``blocks`` and ``mednext``, the readable reference.
- ``"triton"``: the Triton kernels on a GPU; never chosen by ``"auto"``.

All compute the same function of the same parameters. The environment variable ``MEDNEXT_BACKEND`` sets the initial one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["BACKENDS", "get_backend", "set_backend", "using_backend"]

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
    Choose the backend for this process.

    Args:
        name: one of ``BACKENDS``.

    Raises:
        ValueError: when it is none of them.
    """
    global _backend
    _backend = _checked(name, "name")


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Choose the backend within a ``with`` block; arguments and errors as for :py:func:`set_backend`."""
    before = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)
