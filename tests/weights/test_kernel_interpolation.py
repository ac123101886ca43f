"""Promises of UpKern: the published values, any kernel to any other, and nothing silently left out."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.reference import fill_weights, load_reference, make_input

from mednext_monai.networks import MedNeXt, MedNeXtBlock, create_mednext
from mednext_monai.weights import upkern

TINY = dict(base_channels=4, block_counts=(1,) * 9)


def tiny(**kwargs) -> MedNeXt:
    return MedNeXt(**{**TINY, **kwargs})


def copy_of(network: torch.nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_k3_to_k5_gives_the_published_tensors_and_outputs():
    figures = load_reference("upkern_s_k3_to_k5")
    small = fill_weights(create_mednext("S", 3, out_channels=3, deep_supervision=True))
    large = create_mednext("S", 5, out_channels=3, deep_supervision=True).train()
    report = upkern(small, large)
    assert len(report.interpolated) == 26 and len(report.copied) == 210
    assert report.skipped == report.missing == []
    for name, recorded in figures["tensors"].items():
        tensor = large.state_dict()[name]
        assert list(tensor.shape) == recorded["shape"]
        expected = torch.tensor(recorded["value"])
        torch.testing.assert_close(tensor.flatten()[recorded["index"]], expected, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        outputs = large(make_input(figures["input_shape"]))
    assert len(outputs) == len(figures["outputs"]) == 5
    for output, recorded in zip(outputs, figures["outputs"]):
        expected = torch.tensor(recorded["value"])
        tolerance = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(output.flatten()[recorded["index"]], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_delta_becomes_the_profile_of_linear_interpolation(spatial_dims):
    one, other = (MedNeXtBlock(spatial_dims, 1, 1, kernel_size=k) for k in (3, 5))
    one.conv1.weight.data.zero_()[(0, 0) + (1,) * spatial_dims] = 1
    upkern(one, other)  # align_corners=False, not rescaled
    profile = torch.tensor([0, 0.4, 1, 0.4, 0])
    expected = profile.view(-1, 1) * profile
    expected = expected if spatial_dims == 2 else expected[..., None] * profile
    torch.testing.assert_close(other.conv1.weight[0, 0], expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 5), (5, 3), (3, 7), (7, 5), (1, 3)], ids=str)
def test_any_kernel_size_becomes_any_other(spatial_dims, sizes):
    source, target = (tiny(spatial_dims=spatial_dims, kernel_size=k, deep_supervision=True) for k in sizes)
    report = upkern(source.state_dict(), target)
    state, kernels = target.state_dict(), [n for n in source.state_dict() if n.endswith("conv1.weight")]
    assert report.interpolated == ([] if sizes[0] == sizes[1] else kernels)
    assert sorted(report.copied + report.interpolated) == sorted(state)
    for name in report.copied:
        assert torch.equal(state[name], source.state_dict()[name])
    for name in report.interpolated:
        mode = "bilinear" if spatial_dims == 2 else "trilinear"
        expected = torch.nn.functional.interpolate(source.state_dict()[name], state[name].shape[2:], mode=mode)
        assert torch.equal(state[name], expected)


def test_data_type_of_the_network_and_of_the_source_stay():
    source, target = tiny().half(), tiny(kernel_size=5).double()
    upkern(source, target)
    assert {p.dtype for p in target.parameters()} == {torch.float64}
    assert {p.dtype for p in source.parameters()} == {torch.float16}
    assert torch.equal(target.stem.weight, source.stem.weight.double())


def test_prefixes_and_dummy_of_a_state_dict_are_passed_over():
    source, target = tiny(), tiny(kernel_size=5)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    report = upkern({**state, "module.dummy_tensor": torch.ones(1)}, target)
    assert report.missing == report.skipped == []
    assert torch.equal(target.stem.weight, source.stem.weight)


# --- heads and stem --------------------------------------------------------------------------------------------------


def test_auxiliary_heads_may_be_missing_and_keep_their_weights():
    source, target = tiny(), tiny(kernel_size=5, deep_supervision=True)
    before = copy_of(target)
    report = upkern(source, target)
    heads = [f"out_{i}.conv_out.{kind}" for i in range(1, 5) for kind in ("weight", "bias")]
    assert report.missing == heads and report.skipped == []
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in heads)
    assert "left as initialized: out_1.conv_out.weight, out_1.conv_out.bias, out_2" in str(report)


def test_auxiliary_heads_that_the_network_lacks_are_reported_as_skipped():
    report = upkern(tiny(deep_supervision=True), tiny(kernel_size=5))
    assert len(report.skipped) == 8 and report.missing == []
    assert "skipped: out_1.conv_out.weight" in str(report)


@pytest.mark.parametrize("deep_supervision", [(True, True), (False, True), (True, False), (False, False)])
def test_heads_can_be_skipped_for_a_task_with_other_classes(deep_supervision):
    source = tiny(out_channels=5, deep_supervision=deep_supervision[0])
    target = tiny(kernel_size=5, out_channels=2, deep_supervision=deep_supervision[1])
    before = copy_of(target)
    report = upkern(source, target, skip_heads=True)
    heads = {name for name in [*before, *source.state_dict()] if name.startswith("out_")}
    assert set(report.skipped) == heads and report.missing == []
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("out_") or name.endswith(
            ("norm.weight", "norm.bias")
        )


def test_stem_can_be_skipped_for_a_task_with_other_channels():
    source, target = tiny(in_channels=4), tiny(kernel_size=5)
    before = copy_of(target)
    report = upkern(source, target, skip_stem=True)
    assert report.skipped == ["stem.weight", "stem.bias"]
    assert torch.equal(target.stem.weight, before["stem.weight"])
    assert torch.equal(target.out_0.conv_out.weight, source.out_0.conv_out.weight)


# --- what does not match ---------------------------------------------------------------------------------------------

MISFITS = {
    "classes": (
        {"out_channels": 5},
        {},
        ["out_0.conv_out.weight: (4, 5, 1, 1, 1) in the checkpoint, (4, 2, 1, 1, 1) in the network", "skip_heads=True"],
    ),
    "channels": (
        {"in_channels": 4},
        {},
        ["stem.weight: (4, 4, 1, 1, 1) in the checkpoint, (4, 1, 1, 1, 1) in the network", "skip_stem=True"],
    ),
    "ratio": (
        {"expansion_ratio": 3},
        {},
        [
            "enc_block_0.0.conv2.weight: (12, 4, 1, 1, 1) in the checkpoint, (8, 4, 1, 1, 1) in the network",
            "and 43 more",
        ],
    ),
    "width": ({"base_channels": 8}, {}, ["stem.bias: (8,) in the checkpoint, (4,) in the network", "8 base channels"]),
    "deeper checkpoint": ({"block_counts": (2,) * 9}, {}, ["only in the checkpoint: enc_block_0.1.conv1.weight"]),
    "deeper network": ({}, {"block_counts": (2,) * 9}, ["only in the network: enc_block_0.1.conv1.weight"]),
    "dimensions": ({"spatial_dims": 2}, {}, ["stem.weight: (4, 1, 1, 1) in the checkpoint, (4, 1, 1, 1, 1) in the"]),
    "GRN": ({}, {"use_grn": True}, ["only in the network: enc_block_0.0.grn_beta", "with GRN"]),
    "residuals": ({}, {"use_residual_resampling": False}, ["only in the checkpoint: down_0.res_conv.weight"]),
}


@pytest.mark.parametrize("kind", MISFITS)
@pytest.mark.parametrize("options", [{}, {"skip_heads": True, "skip_stem": True}], ids=["strict", "skipping"])
def test_misfit_is_an_error_naming_tensors_and_shapes_and_leaves_the_network_alone(kind, options):
    source_arguments, target_arguments, messages = MISFITS[kind]
    if options and kind in ("classes", "channels"):
        pytest.skip("allowed when skipping")
    source, target = tiny(**source_arguments), tiny(kernel_size=5, **target_arguments)
    before = copy_of(target)
    with pytest.raises(ValueError) as error:
        upkern(source, target, **options)
    for message in messages if not options else messages[:0]:
        assert message in str(error.value)
    assert "kernel 3, " in str(error.value) and "kernel 5, " in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("pair", [("S", "B"), ("B", "S"), ("B", "M"), ("M", "B"), ("M", "L")], ids="-".join)
def test_another_variant_is_an_error_that_names_both(pair):
    with torch.device("meta"):
        source, target = create_mednext(pair[0], 3), create_mednext(pair[1], 5)
        with pytest.raises(ValueError, match=f"MedNeXt-{pair[0]}, kernel 3, .*MedNeXt-{pair[1]}, kernel 5, ") as error:
            upkern(source, target)
    assert len(str(error.value)) < 2500


def test_something_else_than_a_mednext_is_an_error():
    with pytest.raises(ValueError, match=re.escape("the checkpoint (not a MedNeXt) does not match the network")):
        upkern(torch.nn.Linear(2, 2), tiny())
    with pytest.raises(ValueError, match="does not match the network"):
        upkern({}, tiny())
