"""Describing a network from its tensors: every published variant, any other network, and what is not a MedNeXt."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.reference import load_reference

from mednext_monai.networks import VARIANTS, MedNeXt, create_mednext
from mednext_monai.weights import describe


@pytest.mark.parametrize("name", load_reference("variants"))
def test_published_variant_is_recognized(name):
    shapes = load_reference("variants")[name]["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    description = describe(state)
    variant, kernel = name.split("_k")
    assert str(description) == (
        f"MedNeXt-{variant}, kernel {kernel}, 3D, 1 input channel, 3 classes, with deep supervision heads"
    )
    assert description.expansion_ratio == VARIANTS[variant].expansion_ratio
    assert description.block_counts == VARIANTS[variant].block_counts


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            {"base_channels": 4},
            "MedNeXt, not a published variant, kernel 3, 3D, 1 input channel, 2 classes, without",
        ),
        ({"expansion_ratio": (2, 3, 4, 4, 4, 4, 4, 3, 2), "block_counts": (1, 2, 1, 1, 2, 1, 1, 1, 1)}, "2-3-4-4-4"),
        ({"encoder_kernel_size": 5, "in_channels": 4}, "kernel 5 in the encoder and 3 after it, 3D, 4 input channels"),
        ({"use_grn": True}, "with GRN"),
        ({"use_residual_resampling": False, "use_residual": False}, "without residuals in resampling"),
        ({"spatial_dims": 2, "out_channels": 1, "deep_supervision": True}, "2D, 1 input channel, 1 class, with deep"),
        ({"norm": "layer"}, "kernel 3"),
    ],
)
def test_any_network_is_described_by_arguments_that_rebuild_it(arguments, text):
    with torch.device("meta"):
        network = MedNeXt(**{"base_channels": 8, "block_counts": (1,) * 9, **arguments})
        description = describe(network.state_dict())
        rebuilt = MedNeXt(**description.network_arguments())
    assert description.variant is None
    assert text in str(description)
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (network, rebuilt)]
    assert shapes[0] == shapes[1]


def test_two_dimensional_variant_is_recognized():
    with torch.device("meta"):
        network = create_mednext("B", 7, spatial_dims=2)
    assert str(describe(network.state_dict())).startswith("MedNeXt-B, kernel 7, 2D")


def test_tensors_of_something_else_are_an_error_that_says_why():
    with torch.device("meta"):
        state = create_mednext("S").state_dict()
    with pytest.raises(ValueError, match="not the tensors of a MedNeXt: stem.weight, .* missing among 2 tensors"):
        describe(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="only found: more"):
        describe({**state, "more": torch.empty(1)})
    with pytest.raises(ValueError, match="only expected: enc_block_1.1.norm.bias"):
        describe({name: tensor for name, tensor in state.items() if name != "enc_block_1.1.norm.bias"})
    with pytest.raises(ValueError, match=re.escape("up_2.conv2.bias: (7,) found, (512,) expected")):
        describe({**state, "up_2.conv2.bias": torch.empty(7)})
    for name in ("stem.weight", "enc_block_0.0.conv2.weight", "out_0.conv_out.weight"):
        for shape in ((), (3,), (0, 0, 0, 0, 0), (1, 1, 1, 1, 1), (5, 4, 3, 2, 1)):
            with pytest.raises(ValueError, match="not the tensors of a MedNeXt"):
                describe({**state, name: torch.empty(shape)})
