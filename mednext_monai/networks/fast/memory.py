"""Memory for activations that is used again, instead of being given back to the system and faulted in anew.

The C library maps every large tensor freshly: the kernel clears its pages, one fault for each, and takes them back when
the tensor dies. In a training step on the CPU that costs as much as the arithmetic. ``empty`` keeps the memory of large
tensors that died, by size, and hands it to the next tensor of that size.

A tensor made here is an ordinary one. Its memory returns when the last tensor that shares its storage is gone: the
storage holds a NumPy array, and the end of that array's life is what is waited for. Before memory is taken anew, as
much of what lies unused is dropped; the total stays near the largest amount in use at one time.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["empty", "release"]

SMALLEST = 1 << 20  # bytes; the C library serves smaller tensors well
ALIGNMENT = 64  # bytes, of a cache line
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

_unused: OrderedDict[int, np.ndarray] = OrderedDict()  # by identity, the oldest first
_lock = threading.RLock()  # a collection of garbage may return memory while it is taken


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """
    Return an uninitialised contiguous tensor on the CPU.

    Args:
        shape: its size.
        dtype: float32 or float64.
    """
    count = int(np.prod(shape))
    size = count * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    memory = _take(size + ALIGNMENT)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + size].view(DTYPES[dtype])
    weakref.finalize(array, _give_back, memory).atexit = False
    return torch.from_numpy(array).view(tuple(shape))


def release() -> None:
    """Give all unused memory back."""
    with _lock:
        _unused.clear()


def _take(size: int) -> np.ndarray:
    with _lock:
        for key in reversed(_unused):  # the one used last may still be in the cache
            if _unused[key].nbytes == size:
                return _unused.pop(key)
        dropped = 0
        while _unused and dropped < size:
            dropped += _unused.popitem(last=False)[1].nbytes
    return np.empty(size, np.uint8)


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        _unused[id(memory)] = memory
