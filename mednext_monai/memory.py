"""Reused memory for large tensors on the CPU.

The C library maps every large tensor freshly: the kernel clears its pages, one fault for each, and takes them back when
the tensor dies. That can cost as much as the arithmetic. ``empty`` keeps the memory of large tensors that died and
hands it to later tensors.

A tensor made here is an ordinary one. Its memory returns when the last tensor that shares its storage is gone: the
storage holds a NumPy array, and the end of that array's life is what is waited for. Before new memory is allocated, as
much unused memory is freed; the total stays near the largest amount in use at one time.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import numpy as np
import torch

__all__ = ["empty", "release", "release_with"]

SMALLEST = 1 << 20  # bytes; the C library serves smaller tensors well
ALIGNMENT = 64  # bytes, of a cache line
SLACK = 2  # a tensor takes memory of up to this many times its size: patches and slabs vary
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int8: np.int8, torch.int16: np.int16}

_unused: OrderedDict[int, np.ndarray] = OrderedDict()  # by identity, the oldest first
_lock = threading.RLock()  # reentrant: garbage collection may return memory while memory is taken
_owners: weakref.WeakSet[object] = weakref.WeakSet()


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """
    Return an uninitialized contiguous tensor on the CPU.

    Args:
        shape: its size.
        dtype: float32, float64, int8 or int16. Defaults to float32.
    """
    shape = tuple(shape)
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = _take(size + ALIGNMENT)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + size].view(DTYPES[dtype])
    weakref.finalize(array, _give_back, memory).atexit = False
    return torch.from_numpy(array).view(shape)


def release() -> None:
    """Free all unused memory."""
    with _lock:
        _unused.clear()


def release_with(owner: object) -> None:
    """Free the unused memory when ``owner``, such as a network, is garbage collected."""
    if owner not in _owners:
        _owners.add(owner)
        weakref.finalize(owner, release).atexit = False


def _take(size: int) -> np.ndarray:
    with _lock:
        # the smallest that suffices; of equal ones that used last, which may still be in the cache
        fitting = ((memory.nbytes, -age, key) for age, (key, memory) in enumerate(_unused.items()))
        best = min((entry for entry in fitting if size <= entry[0] <= SLACK * size), default=None)
        if best is not None:
            return _unused.pop(best[2])
        freed = 0
        while _unused and freed < size:
            freed += _unused.popitem(last=False)[1].nbytes
    return np.empty(size, np.uint8)


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        _unused[id(memory)] = memory


def _start_child() -> None:
    """In a forked process: the lock may be held by a thread that does not exist here."""
    global _lock
    _lock = threading.RLock()
    _unused.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_child)
