"""The authors' names and arguments: the recorded options by their own arguments, migrated code, other defaults."""

from __future__ import annotations

import pytest
import torch
from helpers.reference import fill_weights, load_reference, make_input

from mednext_monai import networks, upstream

OPTIONS = load_reference("options")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_originals_arguments_give_the_recorded_outputs(name):
    figures = OPTIONS[name]
    network = fill_weights(upstream.MedNeXt(**figures["upstream_arguments"])).train()
    with torch.no_grad():
        outputs = network(make_input(figures["input_shape"]))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for output, recorded in zip(outputs, figures["outputs"], strict=True):
        expected = torch.tensor(recorded["value"])
        value = output.flatten()[recorded["index"]]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("model_id", "SBML")
def test_create_mednext_v1_builds_the_published_parameters_and_loads_an_original(model_id):
    with torch.device("meta"):
        network = upstream.create_mednext_v1(1, 3, model_id, 5, deep_supervision=True)
    figures = load_reference("variants")[f"{model_id}_k5"]
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == figures["state_dict"]
    assert network.enc_block_0[0].use_checkpoint == (model_id in "ML")


@pytest.mark.parametrize(("style", "stored"), [(None, False), ("outside_block", True), ("expansion", "expansion")])
def test_a_checkpoint_style_is_what_is_computed_again(style, stored):
    network = upstream.MedNeXt(1, 4, 2, kernel_size=3, checkpoint_style=style)
    assert network.enc_block_0[0].use_checkpoint is stored or network.enc_block_0[0].use_checkpoint == stored


def test_a_state_dict_with_dummy_tensor_loads_strictly():
    network = upstream.create_mednext_v1(1, 2, "S")
    state = {**network.state_dict(), "dummy_tensor": torch.ones(1)}
    assert str(network.load_state_dict(state)) == "<All keys matched successfully>"


def test_kernel_size_overrides_the_others_as_in_the_original():
    network = upstream.MedNeXt(1, 4, 2, kernel_size=3, enc_kernel_size=5, dec_kernel_size=5)
    assert network.enc_block_0[0].conv1.kernel_size == network.bottleneck[0].conv1.kernel_size == (3, 3, 3)


def test_upkern_load_weights_returns_the_network():
    small = upstream.create_mednext_v1(1, 2, "S", 3)
    large = upstream.create_mednext_v1(1, 2, "S", 5)
    assert upstream.upkern_load_weights(large, small) is large
    assert torch.equal(large.bottleneck[0].conv2.weight, small.bottleneck[0].conv2.weight)


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_blocks_are_the_native_ones(dim):
    torch.manual_seed(0)
    dims = int(dim[0])
    x = torch.randn(1, 4, *[6] * dims)
    pairs = [
        (upstream.MedNeXtBlock(4, 4, 2, 3, dim=dim, n_groups=2), networks.MedNeXtBlock(dims, 4, 4, 2, 3, groups=2)),
        (
            upstream.MedNeXtDownBlock(4, 8, 2, 3, do_res=True, dim=dim),
            networks.MedNeXtDownBlock(dims, 4, 8, 2, 3),
        ),
        (upstream.MedNeXtUpBlock(4, 2, 2, 3, do_res=True, dim=dim), networks.MedNeXtUpBlock(dims, 4, 2, 2, 3)),
        (upstream.OutBlock(4, 3, dim), networks.MedNeXtOutBlock(dims, 4, 3)),
    ]
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: upstream.create_mednext_v1(1, 2, "XL"), "model_id must be one of .*'XL'"),
        (lambda: upstream.MedNeXt(1, 4, 2, dim="4d"), "dim must be one of"),
        (lambda: upstream.MedNeXt(1, 4, 2, checkpoint_style="inside"), "checkpoint_style must be one of"),
        (lambda: upstream.MedNeXt(1, 4, 2, kernel_size=None, enc_kernel_size=3), "needs both"),
    ],
)
def test_bad_arguments_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
