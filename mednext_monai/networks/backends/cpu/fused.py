"""Products of oneDNN that apply bias, GELU or a sum before they store a value, as ``torch.compile`` uses them.

The operations are private to torch: their names and arguments may change. They are tried once, and used if they exist
and their values are right.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

__all__ = ["FusedProducts", "fused_products"]


class FusedProducts:
    """Matrix products of rows ``(V, C)``, a matrix ``(C', C)`` and a bias ``(C')``, float32 or bfloat16."""

    def linear(self, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ matrix' + bias``."""
        return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "none")

    def linear_gelu(self, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return ``gelu(rows @ matrix' + bias)``."""
        return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "gelu", [], "none")

    def add_linear(self, out: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> None:
        """
        Add ``rows @ matrix' + bias`` to ``out``, ``(V, C')``, rounding once.

        As a 1x1 convolution of the rows as an image, since torch has a sum in place for convolutions only.
        """
        geometry = [0, 0], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        kernel = matrix[:, :, None, None]
        torch.ops.mkldnn._convolution_pointwise_.binary(
            _image(out), _image(rows), kernel, bias, *geometry, "add", None, None, [], None
        )


def _image(rows: torch.Tensor) -> torch.Tensor:
    """Return rows ``(V, C)`` as a channels-last image ``(1, C, V, 1)``."""
    return rows[None, :, None].permute(0, 3, 1, 2)


@functools.cache
def fused_products(dtype: torch.dtype) -> FusedProducts | None:
    """Return the products, or ``None`` if this torch lacks one or one is not correct for the type."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    products = FusedProducts()
    rows = torch.linspace(-6.0, 6.0, 128, device="cpu", dtype=dtype).view(8, 16)
    matrix = torch.eye(32, 16, device="cpu", dtype=dtype)
    bias = torch.linspace(-0.5, 0.5, 32, device="cpu", dtype=dtype)
    expected = torch.addmm(bias.double(), rows.double(), matrix.double().t())
    total = torch.ones(8, 32, device="cpu", dtype=dtype)
    try:
        values = [products.linear(rows, matrix, bias), products.linear_gelu(rows, matrix, bias), total]
        products.add_linear(total, rows, matrix, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    right = (expected, F.gelu(expected), 1 + expected)
    return products if all(torch.allclose(a.double(), b, tolerance, tolerance) for a, b in zip(values, right)) else None
