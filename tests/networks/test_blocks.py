"""Promises of the blocks: each works alone, in 2D and 3D, and computes what it says."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from helpers.reference import make_input

from mednext_monai.networks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock, using_backend
from mednext_monai.networks.blocks import ChannelLayerNorm

BLOCK_OPTIONS = [
    {},
    {"groups": 2},
    {"norm": "layer"},
    {"use_grn": True},
    {"use_residual": False, "expansion_ratio": 3},
    {"use_checkpoint": True, "kernel_size": 5},
    {"use_checkpoint": "expansion", "use_grn": True},
]


@pytest.mark.parametrize("options", BLOCK_OPTIONS, ids=str)
@pytest.mark.parametrize("spatial_dims, size", [(2, (7, 10)), (3, (5, 6, 9))])
def test_blocks_work_alone_on_odd_sizes(spatial_dims, size, options):
    x = make_input([2, 4, *size]).requires_grad_()
    expected = {
        MedNeXtBlock: (2, 4, *size),
        MedNeXtDownBlock: (2, 6, *((n + 1) // 2 for n in size)),
        MedNeXtUpBlock: (2, 6, *(2 * n for n in size)),
    }
    for block_type, shape in expected.items():
        block = block_type(spatial_dims, 4, shape[1], **options)
        y = block(x)
        assert tuple(y.shape) == shape, block_type
        y.square().mean().backward()
        assert all(parameter.grad is not None for parameter in block.parameters()), block_type
        groups = options.get("groups", 4)
        assert block.conv1.weight.shape[1] == 4 // groups
        assert block.conv2.out_channels == options.get("expansion_ratio", 4) * 4
    assert MedNeXtOutBlock(spatial_dims, 4, 3)(x).shape == (2, 3, *size)


def test_residual_of_a_block_is_its_input():
    block = MedNeXtBlock(3, 4, 4)
    torch.nn.init.zeros_(block.conv3.weight)
    torch.nn.init.zeros_(block.conv3.bias)
    x = make_input([1, 4, 5, 5, 5])
    assert torch.equal(block(x), x)


def test_up_block_puts_one_plane_of_zeros_before_the_first():
    y = MedNeXtUpBlock(3, 4, 2)(make_input([1, 4, 3, 4, 5]))
    assert y[:, :, 0].abs().max() == y[:, :, :, 0].abs().max() == y[..., 0].abs().max() == 0
    assert y[:, :, 1:, 1:, 1:].abs().min() > 0


def test_zero_initialized_grn_changes_nothing():
    plain, grn = MedNeXtBlock(3, 4, 4), MedNeXtBlock(3, 4, 4, use_grn=True)
    grn.load_state_dict(plain.state_dict(), strict=False)
    x = make_input([1, 4, 6, 6, 6])
    torch.testing.assert_close(grn(x), plain(x))


def test_grn_equals_its_definition():
    block = MedNeXtBlock(2, 2, 2, use_grn=True, use_residual=False)
    torch.nn.init.constant_(block.grn_gamma, 0.5)
    torch.nn.init.constant_(block.grn_beta, 0.25)
    hidden = make_input([1, 8, 3, 4])
    response = hidden.square().sum(dim=(2, 3), keepdim=True).sqrt()
    expected = 0.5 * hidden * response / (response.mean(dim=1, keepdim=True) + 1e-6) + 0.25 + hidden
    torch.testing.assert_close(block._grn(hidden), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"out_channels": 6}, "use_residual=True needs out_channels equal to in_channels, got 4 and 6"),
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"out_channels": -1}, "out_channels must be a positive integer, got -1"),
        ({"expansion_ratio": 0}, "expansion_ratio must be a positive integer, got 0"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"kernel_size": 2}, "kernel_size must be a positive odd integer, got 2"),
        ({"norm": "instance"}, "norm must be one of ('group', 'layer'), got 'instance'"),
        ({"groups": 3}, "groups must divide in_channels=4, got 3"),
        (
            {"use_checkpoint": "inside"},
            "use_checkpoint must be one of (False, True, 'block', 'expansion'), got 'inside'",
        ),
        ({"use_checkpoint": None}, "use_checkpoint must be one of (False, True, 'block', 'expansion'), got None"),
        ({"groups": 0}, "groups must divide in_channels=4, got 0"),
    ],
)
def test_block_arguments_outside_what_is_allowed_are_errors_that_say_so(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MedNeXtBlock(**{"spatial_dims": 3, "in_channels": 4, "out_channels": 4, **options})


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_channel_layer_norm_equals_torchs_on_channels_last(size):
    ours, theirs = ChannelLayerNorm(6), torch.nn.LayerNorm(6)
    for norm in (ours, theirs):
        norm.weight.data.copy_(torch.arange(6) + 0.5)
        norm.bias.data.copy_(torch.arange(6) - 2.0)
    x = 10 + make_input([2, 6, *size])
    expected = theirs.double()(x.double().movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(ours(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_norm_of_images_is_as_precise_in_channels_last_memory():
    norm = MedNeXtBlock(2, 8, 8, 2).norm
    x = 3 + torch.randn(1, 8, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(norm).double()(x.double())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = norm(x.to(memory_format=memory_format)).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 2), (2, 5, 4), (4, 4, 4), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("block_type", [MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock])
def test_gradients_of_few_channels_last_voxels_under_autocast_are_right(block_type, kernel_size, size):
    block = block_type(3, 32, 32, 2, kernel_size=kernel_size, norm="layer").to(memory_format=torch.channels_last_3d)
    x = make_input([2, 32, *size])
    exact = copy.deepcopy(block).double()
    exact(x.double()).sin().sum().backward()
    with using_backend("plain"), torch.autocast("cpu", torch.bfloat16):
        y = block(x.to(memory_format=torch.channels_last_3d))
    y.float().sin().sum().backward()
    expected = exact.conv1.weight.grad
    assert (block.conv1.weight.grad - expected).norm() < 0.05 * expected.norm()
