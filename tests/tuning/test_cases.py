"""What is measured is what the bundle runs: its network, its patches and batches, its precision."""

from __future__ import annotations

import json

import pytest
from helpers.bundles import make_trained

from mednext_monai import bundles
from mednext_monai.networks import MedNeXt, create_mednext
from mednext_monai.tuning.cases import bundle_cases


def test_a_training_step_and_the_two_forward_passes_are_measured_eager_and_compiled():
    cases = bundle_cases(bundles.path("mednext_b_k5"), {"out_channels": 4, "in_channels": 2})
    assert [str(case) for case in cases] == [
        "training, 2 x 2 x 128 x 128 x 128, float16",
        "inference, 1 x 2 x 128 x 128 x 128, float16",
        "inference, 2 x 2 x 128 x 128 x 128, float16",
        "training, 2 x 2 x 128 x 128 x 128, float16, compiled",
        "inference, 1 x 2 x 128 x 128 x 128, float16, compiled",
        "inference, 2 x 2 x 128 x 128 x 128, float16, compiled",
    ]
    expected = create_mednext("B", 5, in_channels=2, out_channels=4, deep_supervision=True)
    found = MedNeXt(**json.loads(json.dumps(cases[0].network)))  # as another process gets it
    assert str(found) == str(expected)


@pytest.mark.parametrize(
    "name, options, expected",
    [("l_k3", {}, True), ("s_k3", {}, False), ("s_k3", {"gradient_checkpointing": "true"}, True)],
)
def test_the_networks_blocks_are_checkpointed_as_in_training(name, options, expected):
    (case, *_) = bundle_cases(bundles.path(f"mednext_{name}"), options)
    assert MedNeXt(**case.network).bottleneck[0].use_checkpoint is expected


def test_options_and_settings_of_the_bundle_count(tmp_path):
    bundle = make_trained("mednext_s_k3", tmp_path, base_channels=4)
    options = {"batch_size": 1, "patch_size": [32, 48, 64], "amp": False}
    cases = bundle_cases(bundle, options, compile=False)
    assert [str(case) for case in cases] == [
        "training, 1 x 1 x 32 x 48 x 64, float32",
        "inference, 1 x 1 x 32 x 48 x 64, float32",
    ]
    assert cases[0].network["base_channels"] == 4
