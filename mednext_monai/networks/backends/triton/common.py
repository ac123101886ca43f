"""What the kernels share: rounding and products as a GPU does them, and the shape of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .precision import allows_tf32

__all__ = ["INTERPRETED", "block", "dot", "precision", "rounded"]


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Convert float32 to ``dtype``, to nearest even. Triton's interpreter cuts bfloat16 off: done by hand there."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


# Whether Triton's interpreter runs the kernels: TRITON_INTERPRET=1 when this module was imported.
INTERPRETED = tl.constexpr(not isinstance(rounded, triton.JITFunction))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Matrix product, accumulated in float32. Triton's interpreter cannot multiply bfloat16; float32 is the same."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


def block(size: int, largest: int) -> int:
    """Return the edge of a tile for an axis of ``size``: a power of two from 16, which ``tl.dot`` needs, on."""
    return max(16, min(triton.next_power_of_2(size), largest))


def precision() -> str:
    """Return how float32 products are taken: exactly, unless ``torch`` is told that TF32 is good enough."""
    return "tf32" if allows_tf32() else "ieee"
