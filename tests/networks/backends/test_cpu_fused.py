from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from mednext_monai.networks.backends.cpu.fused import fused_products


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_the_products_round_once(dtype, tolerance):
    products = fused_products(dtype)
    if products is None:
        pytest.skip("this torch has no such products here")
    rows, matrix, bias, out = (torch.randn(*shape).to(dtype) for shape in [(300, 48), (20, 48), (20,), (300, 20)])
    expected = torch.addmm(bias.double(), rows.double(), matrix.double().t())
    total = out.double() + expected
    values = products.linear(rows, matrix, bias), products.linear_gelu(rows, matrix, bias)
    products.add_linear(out, rows, matrix, bias)
    for value, reference in zip((*values, out), (expected, F.gelu(expected), total)):
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.double(), reference, rtol=tolerance, atol=3 * tolerance if dtype == torch.float32 else 0.01
        )


@pytest.mark.parametrize("operation", ["_linear_pointwise", "_convolution_pointwise_"])
@pytest.mark.parametrize("broken", [AttributeError("gone"), TypeError("arguments"), lambda *_: torch.zeros(8, 32)])
def test_products_that_are_missing_or_wrong_are_not_used(operation, broken):
    search = fused_products.__wrapped__  # without the cache
    with patch.object(torch.ops.mkldnn, operation) as mocked:
        mocked.side_effect = mocked.binary.side_effect = broken
        assert search(torch.float32) is None


def test_other_types_have_no_fused_products():
    assert fused_products(torch.float64) is None
