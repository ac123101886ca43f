from unittest.mock import patch

import pytest
import torch

from mednext_monai.networks.backends.cpu import precision

pays = precision.bfloat16_pays.__wrapped__  # without the cache


@pytest.mark.parametrize("native, seconds, expected", [(True, 1.0, True), (True, 3.5, False), (False, 1.0, False)])
def test_bfloat16_pays_where_onednn_takes_it_and_it_was_measured_to_be_faster(native, seconds, expected):
    times = {torch.float32: 4.0, torch.bfloat16: seconds}
    with patch.object(precision, "_is_native", return_value=native):
        with patch.object(precision, "_product_seconds", side_effect=times.__getitem__):
            assert pays() is expected


def test_a_torch_without_the_question_computes_in_float32():
    with patch.object(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", side_effect=AttributeError("gone")):
        assert pays() is False


def test_measuring_leaves_the_number_of_threads():
    before = torch.get_num_threads()
    assert precision._product_seconds(torch.float32) > 0
    assert torch.get_num_threads() == before


def test_only_autocast_of_the_cpu_with_bfloat16_wants_it():
    assert not precision.wants_bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert precision.wants_bfloat16()
    with torch.autocast("cpu", torch.float16):
        assert not precision.wants_bfloat16()
