"""Reused memory for large tensors on the CPU.

The C library maps new memory for each large tensor: the kernel clears its pages, with one fault per page, and unmaps
them when the tensor is freed. This can take as long as the computation. ``empty`` keeps the memory of large tensors
that were freed and reuses it for later ones.

The tensors are ordinary. The memory is returned when the last tensor that shares the storage is freed: the storage
holds a NumPy array with a finalizer. Before new memory is allocated, the same amount of unused memory is freed, so the
total stays close to the peak usage.
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

SMALLEST = 1 << 20  # bytes; the C library handles smaller tensors well
ALIGNMENT = 64  # bytes, of a cache line
SLACK = 2  # a tensor may use memory of up to this many times its size, since patches and slabs vary
DTYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.int16,  # NumPy has none: an integer of its size
    torch.int8: np.int8,
    torch.int16: np.int16,
}

_unused: OrderedDict[int, np.ndarray] = OrderedDict()  # by id, oldest first
_lock = threading.RLock()  # reentrant: garbage collection may return memory during an allocation
_owners: weakref.WeakSet[object] = weakref.WeakSet()


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """
    Return an uninitialized contiguous tensor on the CPU.

    Args:
        shape: shape of the tensor.
        dtype: float32, float64, bfloat16, int8 or int16. Defaults to float32.
    """
    shape = tuple(shape)
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = _take(size + ALIGNMENT)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + size].view(DTYPES[dtype])
    weakref.finalize(array, _give_back, memory).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)


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
        # the smallest that is large enough; of equal ones the last used, which may still be in the cache
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
