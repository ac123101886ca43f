"""Whether a CPU computes in bfloat16, and whether that is faster here."""

from __future__ import annotations

import functools
import time

import torch

__all__ = ["bfloat16_pays", "type_here", "wants_bfloat16"]

ROWS, COLUMNS, WIDTH = 2048, 64, 256  # of the product that is measured
ROUNDS = 20
GAIN = 1.3  # with the instructions, 4 was measured; without them oneDNN converts, which costs time


def wants_bfloat16() -> bool:
    """Return whether the caller has put the CPU under autocast with bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def type_here(x: torch.Tensor) -> torch.dtype:
    """
    Return the type in which to compute float32 or bfloat16 input ``(B, C, *spatial)``.

    That is bfloat16 for volumes under autocast with bfloat16 if that is faster on this processor, else float32. Images
    are convolved by operations that are slow in bfloat16.
    """
    return torch.bfloat16 if x.dim() == 5 and wants_bfloat16() and bfloat16_pays() else torch.float32


@functools.cache
def bfloat16_pays() -> bool:
    """
    Return whether this processor multiplies bfloat16 matrices, measured once per process, faster than float32 ones.

    Those with AVX512-BF16 do (measured). oneDNN takes the type on others with AVX512 as well, and converts it.
    """
    if not (torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available() and _is_native()):
        return False
    times = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return times[torch.float32] > GAIN * times[torch.bfloat16]


def _is_native() -> bool:
    """Ask torch whether oneDNN takes bfloat16 here; this function of torch is private and may be missing."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the seconds of a product on one thread, the least of several: other processes only ever add to them."""
    threads = torch.get_num_threads()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        rows, matrix = torch.ones(ROWS, COLUMNS, dtype=dtype), torch.ones(COLUMNS, WIDTH, dtype=dtype)
        out = torch.empty(ROWS, WIDTH, dtype=dtype)
        torch.set_num_threads(1)
        try:
            return min(_seconds(rows, matrix, out) for _ in range(ROUNDS))
        finally:
            torch.set_num_threads(threads)


def _seconds(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(rows, matrix, out=out)
    return time.perf_counter() - started
