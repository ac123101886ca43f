"""The matrix products on the CPU: right, rounded once, and used only if this torch has them."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from mednext_monai.networks.backends.cpu.products import MANY, OneDNNProducts, Products, products_for

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("kind", [Products, OneDNNProducts])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_the_products_round_once(kind, dtype):
    if not isinstance(products_for(dtype), kind):
        pytest.skip("this torch has no such products here")
    products, tolerance = kind(), TOLERANCES[dtype]
    shapes = [(300, 48), (20, 48), (20,), (300, 20), (300, MANY // 48 + 1)]
    rows, matrix, bias, out, many = (torch.randn(*shape).to(dtype) for shape in shapes)
    expected = torch.addmm(bias.double(), rows.double(), matrix.double().t())
    pairs = [
        (products.linear(rows, matrix, bias), expected),
        (products.linear(rows, matrix), expected - bias.double()),
        (products.linear_gelu(rows, matrix, bias), F.gelu(expected)),
        (products.outer(rows, out), rows.double().t() @ out.double()),
        (products.outer(rows, many), rows.double().t() @ many.double()),
    ]
    total = out.double() + expected
    products.add_linear(out, rows, matrix, bias)
    once = dtype != torch.bfloat16 or kind is OneDNNProducts  # torch.mm cannot add and round once
    for value, right in [*pairs, (out, total)] if once else pairs:
        assert value.dtype == dtype
        scale = float(right.abs().max())
        torch.testing.assert_close(value.double(), right, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("operation", ["_linear_pointwise", "_convolution_pointwise_"])
@pytest.mark.parametrize("broken", [AttributeError("gone"), TypeError("arguments"), lambda *_: torch.zeros(8, 32)])
def test_products_that_are_missing_or_wrong_are_not_used(operation, broken):
    search = products_for.__wrapped__  # without the cache
    with patch.object(torch.ops.mkldnn, operation) as mocked:
        mocked.side_effect = mocked.binary.side_effect = broken
        assert type(search(torch.float32)) is Products


def test_float64_is_left_to_torch():
    assert type(products_for(torch.float64)) is Products
