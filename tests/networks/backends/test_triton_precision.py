"""Whether TF32 is allowed, however torch was told so."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.networks.backends.triton.precision import allows_tf32

MATMUL = torch.backends.cuda.matmul
is_new = pytest.mark.skipif(torch.__version__ < "2.9", reason="this torch has only the old name of the setting")


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_old_setting_is_understood(allowed):
    MATMUL.allow_tf32 = allowed
    assert allows_tf32() is allowed


@pytest.mark.parametrize("precision, allowed", [("high", True), ("highest", False)])
def test_torchs_function_is_understood(precision, allowed):
    torch.set_float32_matmul_precision(precision)
    assert allows_tf32() is allowed


@is_new
@pytest.mark.parametrize("precision, allowed", [("tf32", True), ("ieee", False)])
def test_the_new_setting_is_understood_for_which_the_old_name_raises(precision, allowed):
    MATMUL.fp32_precision = precision
    assert allows_tf32() is allowed
