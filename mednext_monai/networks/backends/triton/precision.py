"""How float32 products are taken on a GPU."""

from __future__ import annotations

import torch

__all__ = ["allows_tf32"]


def allows_tf32() -> bool:
    """
    Return whether ``torch`` is told that TF32 is good enough for matrix products.

    Since torch 2.9 that has a name of its own, and the old one raises an error for those who have set the new one.
    """
    matmul = torch.backends.cuda.matmul
    try:
        return str(matmul.fp32_precision) == "tf32"
    except (AttributeError, AssertionError):  # older; unknown attributes are an assertion in some versions
        return bool(matmul.allow_tf32)
