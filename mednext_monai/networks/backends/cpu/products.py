"""Matrix products of rows of voxels, with oneDNN where it has them, as ``torch.compile`` uses it.

oneDNN applies bias, GELU or a sum before it stores a value, and multiplies float32 twice as fast as the library that
``torch.mm`` calls does on some processors (measured on an AMD EPYC). Its operations are private to torch: their names
and arguments may change. They are tried once for each type, and used if they exist and their values are right.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

__all__ = ["OneDNNProducts", "Products", "products_for"]

MANY = 1 << 13  # elements of a gradient from which oneDNN's convolution computes it faster than torch.mm, measured


class Products:
    """Products of rows ``(V, C)`` with a matrix ``(C', C)`` and a bias ``(C')`` of their type, by ``torch.mm``."""

    def linear(self, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``rows @ matrix' + bias``."""
        return F.linear(rows, matrix, bias)

    def linear_gelu(self, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return ``gelu(rows @ matrix' + bias)``."""
        return torch.ops.aten.gelu_(F.linear(rows, matrix, bias))

    def add_linear(self, out: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> None:
        """Add ``rows @ matrix' + bias`` to ``out``, ``(V, C')``."""
        out.add_(bias).addmm_(rows, matrix.t())

    def outer(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return ``rows' @ others``, ``(C, C')``: the gradient of a matrix, summed over the rows."""
        return torch.mm(rows.t(), others)


class OneDNNProducts(Products):
    """The same by oneDNN, for float32 and bfloat16; sums are float32."""

    def linear(self, rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
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

    def outer(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """
        Return ``rows' @ others``, ``(C, C')``.

        Large ones in float32 as the weight gradient of a 1x1 convolution; ``torch.mm`` is faster for the others, and
        calls oneDNN itself for bfloat16.
        """
        shape = rows.shape[1], others.shape[1]
        if rows.dtype != torch.float32 or shape[0] * shape[1] < MANY:
            return super().outer(rows, others)
        geometry = [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # stride, padding, dilation, transposed, groups
        like = rows.new_empty((*shape, 1, 1))  # for its shape
        wanted = [False, True, False]
        return torch.ops.aten.convolution_backward(_image(rows), _image(others), like, None, *geometry, wanted)[1][
            :, :, 0, 0
        ]


def _image(rows: torch.Tensor) -> torch.Tensor:
    """Return rows ``(V, C)`` as a channels-last image ``(1, C, V, 1)``."""
    return rows[None, :, None].permute(0, 3, 1, 2)


@functools.cache
def products_for(dtype: torch.dtype) -> Products:
    """Return the products by oneDNN, or by ``torch.mm`` if this torch lacks one or one is not correct for the type."""
    if dtype not in (torch.float32, torch.bfloat16):
        return Products()
    products = OneDNNProducts()
    rows = torch.linspace(-6.0, 6.0, 128, device="cpu", dtype=dtype).view(8, 16)
    matrix = torch.eye(32, 16, device="cpu", dtype=dtype)
    bias = torch.linspace(-0.5, 0.5, 32, device="cpu", dtype=dtype)
    columns = torch.linspace(0.5, 1.0, 8 * MANY // 16, device="cpu", dtype=dtype).view(8, -1)
    expected = torch.addmm(bias.double(), rows.double(), matrix.double().t())
    right = (expected, F.gelu(expected), 1 + expected, rows.double().t() @ columns.double())
    total = torch.ones(8, 32, device="cpu", dtype=dtype)
    try:
        linear, gelu = products.linear(rows, matrix, bias), products.linear_gelu(rows, matrix, bias)
        products.add_linear(total, rows, matrix, bias)
        values = (linear, gelu, total, products.outer(rows, columns))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return Products()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    is_right = all(torch.allclose(a.double(), b, tolerance, tolerance) for a, b in zip(values, right))
    return products if is_right else Products()
