"""Promises of fast inference: the modules' own numbers to rounding, wherever it is chosen, and nowhere else."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
import torch.nn as nn
from helpers.reference import fill_weights, load_reference, make_input
from monai.data import MetaTensor
from torch.utils.flop_counter import FlopCounterMode

from mednext_monai import memory
from mednext_monai.networks import VARIANTS, MedNeXt, MedNeXtBlock, create_mednext, dispatch, set_backend, using_backend
from mednext_monai.networks.backends.cpu import depthwise, pointwise, precision
from mednext_monai.networks.backends.cpu import network as cpu_network
from mednext_monai.networks.backends.cpu.products import OneDNNProducts, Products, products_for

TINY = dict(base_channels=8, out_channels=3, block_counts=(1,) * 9)


@pytest.fixture(autouse=True)
def auto_backend():
    with using_backend("auto"):
        yield


def make_network(**kwargs) -> MedNeXt:
    """A small network in evaluation mode whose norms and biases are not the initial ones."""
    torch.manual_seed(0)
    network = MedNeXt(**{**TINY, **kwargs}).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.3, std=0.5)
    return network


def plainly(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with using_backend("plain"):
        return network(x)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def assert_fast_and_same(network: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected = plainly(network, x)
        with patch.object(cpu_network, "run", wraps=cpu_network.run) as run:
            result = network(x)
    run.assert_called_once()
    assert_same(result, expected)


def dispatched(network: nn.Module, x: torch.Tensor) -> bool:
    """Return whether the network's implementation for a CPU is what would compute it now."""
    found = dispatch.find(network, x)
    return found is not None and found.func is cpu_network.run


def is_fast(network: nn.Module, x: torch.Tensor) -> bool:
    with patch.object(cpu_network, "run", wraps=cpu_network.run) as run:
        network(x)
    return run.called


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def in_bfloat16(network: nn.Module, x: torch.Tensor, pays: bool = True) -> torch.Tensor:
    """What the fast path gives under autocast, where bfloat16 is faster or is not."""
    with patch.object(precision, "bfloat16_pays", return_value=pays), torch.autocast("cpu", torch.bfloat16):
        assert dispatched(network, x)
        return network(x)


def rounded(network: nn.Module) -> nn.Module:
    """A copy in float64 whose matrices and kernels have values that bfloat16 can hold."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16().double()
    return network.double()


@pytest.mark.parametrize(
    "arguments, size",
    [
        (dict(), (16, 16, 16)),
        (dict(kernel_size=5), (16, 48, 16)),
        (dict(use_residual=False, use_residual_resampling=False), (32, 32, 16)),
        (dict(in_channels=4, out_channels=1), (32, 16, 48)),
        (dict(base_channels=5, expansion_ratio=3), (32, 16, 32)),
    ],
)
def test_in_bfloat16_it_errs_no_more_than_the_modules_under_autocast(arguments, size):
    network = make_network(**arguments)
    x = torch.randn(2, network.in_channels, *size)
    with torch.no_grad():
        expected = plainly(rounded(network), x.double())
        result = in_bfloat16(network, x)
        with torch.autocast("cpu", torch.bfloat16):
            modules = plainly(network, x)
    assert result.dtype == torch.float32 and result.shape == expected.shape
    error, of_modules = ((y.double() - expected).square().mean().sqrt() for y in (result, modules))
    assert error < 1.2 * of_modules
    assert 1e-5 < error / expected.std() < 0.03  # it is not float32


def test_autocast_without_a_gain_gives_float32_bit_for_bit():
    network, x = make_network(), torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        assert torch.equal(in_bfloat16(network, x, pays=False), network(x))


@pytest.mark.parametrize("elements", [1, 3000])
def test_in_bfloat16_slabs_and_chunks_of_any_size_give_nearly_the_same(elements):
    network, x = make_network(kernel_size=5), torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        expected = in_bfloat16(network, x)
        with (
            patch.object(depthwise, "SLAB_ELEMENTS", elements),
            patch.object(pointwise, "CHUNK_ELEMENTS", elements * 50),
        ):
            result = in_bfloat16(network, x)
    assert (result - expected).square().mean().sqrt() < 0.03 * expected.std()


def test_in_bfloat16_without_the_products_of_onednn_it_gives_nearly_the_same():
    network, x = make_network(), torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        expected = in_bfloat16(network, x)
        with patch.object(pointwise, "products_for", return_value=Products()):
            result = in_bfloat16(network, x)
    assert (result - expected).square().mean().sqrt() < 0.03 * expected.std()


def test_in_bfloat16_results_do_not_change_with_the_memory_that_is_reused():
    network, x = make_network(), torch.randn(1, 1, 48, 48, 48)
    with torch.no_grad():
        first = in_bfloat16(network, x)
        assert torch.equal(in_bfloat16(network, x), first)


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["S_k3", "S_k5", "B_k3"])
def test_it_computes_the_published_outputs(name):
    variant, kernel = name.split("_k")
    network = fill_weights(create_mednext(variant, int(kernel), out_channels=3, deep_supervision=True)).eval()
    figures = load_reference("variants")[name]
    recorded = figures["outputs"][0]
    with torch.no_grad():
        x = make_input(figures["input_shape"])
        assert dispatched(network, x)
        output = network(x)
    expected = torch.tensor(recorded["value"])
    torch.testing.assert_close(
        output.flatten()[recorded["index"]], expected, rtol=0, atol=1e-4 * expected.abs().max().item()
    )
    assert output.std().item() == pytest.approx(recorded["std"], rel=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_output_of_the_modules(variant, kernel_size):
    torch.manual_seed(0)
    network = create_mednext(variant, kernel_size, out_channels=3, base_channels=8).eval()
    assert_fast_and_same(network, torch.randn(1, 1, 32, 32, 32))


@pytest.mark.parametrize(
    "arguments, size",
    [
        (dict(), (16, 16, 16)),  # one voxel at the bottleneck
        (dict(kernel_size=5), (16, 48, 16)),
        (dict(kernel_size=7), (48, 16, 32)),
        (dict(encoder_kernel_size=3, decoder_kernel_size=5), (32, 32, 16)),
        (dict(encoder_kernel_size=1, decoder_kernel_size=3), (32, 16, 16)),
        (dict(use_residual=False), (32, 32, 32)),
        (dict(use_residual_resampling=False), (32, 32, 32)),
        (dict(use_residual=False, use_residual_resampling=False, kernel_size=5), (16, 32, 32)),
        (dict(in_channels=4, out_channels=1), (32, 16, 48)),
        (dict(base_channels=5, expansion_ratio=3, block_counts=(1, 2, 1, 1, 3, 1, 1, 2, 1)), (32, 16, 32)),
        (dict(base_channels=1, expansion_ratio=1), (32, 32, 32)),
        (dict(deep_supervision=True, use_checkpoint=True), (32, 32, 32)),
    ],
)
def test_every_structure_and_size_gives_the_output_of_the_modules(arguments, size):
    network = make_network(**arguments)
    assert_fast_and_same(network, torch.randn(2, network.in_channels, *size))


@pytest.mark.parametrize("elements", [1, 3000])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_slabs_and_chunks_of_any_size_give_the_same(elements, kernel_size):
    network = make_network(kernel_size=kernel_size)
    with patch.object(depthwise, "SLAB_ELEMENTS", elements), patch.object(pointwise, "CHUNK_ELEMENTS", 100 * elements):
        assert_fast_and_same(network, torch.randn(1, 1, 32, 16, 16))


def test_without_the_products_of_onednn_it_gives_the_same():
    assert isinstance(products_for(torch.float32), OneDNNProducts)  # else nothing is compared
    network, x = make_network(kernel_size=5), torch.randn(2, 1, 32, 16, 32)
    with patch.object(pointwise, "products_for", return_value=Products()):
        assert_fast_and_same(network, x)
    assert_fast_and_same(network, x)


def test_a_large_mean_costs_no_digits():
    network = make_network().double()
    x = torch.randn(1, 1, 32, 32, 32) + 1000
    with torch.no_grad():
        expected = network(x.double()).float()
        result, plain = network.float()(x), plainly(network, x)
    error, plain_error = ((y - expected).abs().max().item() for y in (result, plain))
    assert error < 2 * plain_error


def test_another_default_type_changes_nothing():
    network, x = make_network(), torch.randn(1, 1, 32, 16, 16)
    torch.set_default_dtype(torch.float64)
    try:
        assert_fast_and_same(network, x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_memory_formats_and_views_of_input_and_weights_give_the_same():
    network, x = make_network(in_channels=2), torch.randn(2, 2, 32, 16, 48)
    views = [x.to(memory_format=torch.channels_last_3d), x.transpose(2, 4), x[:1, :1].expand(2, 2, -1, -1, -1)]
    with torch.no_grad():  # contiguous: torch's group norm of channels-last input is off by up to 3e-5
        expected = [plainly(network, view.contiguous()) for view in views]
        for weights in (torch.contiguous_format, torch.channels_last_3d):
            network = network.to(memory_format=weights)
            for view, output in zip(views, expected):
                assert dispatched(network, view)
                assert_same(network(view), output)


# --- when it is chosen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", enabled=False)], ids=repr
)
def test_it_is_chosen_where_nothing_requires_a_gradient(context):
    network, x = make_network().requires_grad_(False), torch.randn(1, 1, 16, 16, 16)
    with context:
        assert is_fast(network, x)


@pytest.mark.parametrize(
    "arguments, size",
    [
        (dict(), (64, 48)),
        (dict(), (16, 16)),  # one pixel at the bottleneck
        (dict(kernel_size=5), (32, 80)),
        (dict(kernel_size=7), (48, 64)),
        (dict(encoder_kernel_size=1, decoder_kernel_size=3), (64, 48)),
        (dict(use_residual=False), (64, 64)),
        (dict(use_residual_resampling=False, in_channels=2), (32, 48)),
        (dict(expansion_ratio=(2, 3, 4, 4, 4, 4, 4, 3, 2), block_counts=(2,) * 9), (48, 32)),
    ],
    ids=str,
)
def test_networks_of_slices_give_the_output_of_the_modules(arguments, size, monkeypatch):
    monkeypatch.setattr(depthwise, "SLAB_ELEMENTS", 2000)  # several slabs
    network = make_network(spatial_dims=2, **arguments)
    assert_fast_and_same(network, torch.randn(3, network.in_channels, *size))
    assert_fast_and_same(network, torch.randn(2, network.in_channels, *size).to(memory_format=torch.channels_last))


def test_networks_of_slices_are_more_precise_than_float32_needs():
    network = create_mednext("S", 3, 2, out_channels=3).eval()
    with torch.no_grad():
        x = 5 + torch.randn(1, 1, 256, 256)
        result, exact = network(x), plainly(copy.deepcopy(network).double(), x.double())
    assert_same(result.double(), exact)


def test_results_of_inference_mode_and_of_no_grad_alternate():
    network, x = make_network(), torch.randn(1, 1, 16, 16, 16)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(network(x), plainly(network, x))
            assert network(x).is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize(
    "arguments",
    [dict(norm="layer"), dict(use_grn=True), dict(kernel_size=1), dict(spatial_dims=2, use_grn=True)],
    ids=str,
)
def test_other_networks_take_the_plain_path(arguments):
    network = make_network(**arguments)
    with torch.no_grad():
        assert not is_fast(network, torch.randn(1, 1, *(16,) * network.spatial_dims))


class _Noted(MedNeXtBlock):
    pass


def _global_hook(network):
    return nn.modules.module.register_module_forward_hook(lambda *_: None)


ALTERATIONS = {
    "training": lambda network: network.train(),
    "forward hook": lambda network: network.enc_block_0[0].conv1.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda network: network.dec_block_0.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda network: network.up_0.norm.register_full_backward_hook(lambda *_: None),
    "parametrization": lambda network: nn.utils.parametrizations.weight_norm(network.up_1.conv2),
    "own forward": lambda network: setattr(network.down_1, "forward", network.down_1.forward),
    "own block": lambda network: network.enc_block_1.append(_Noted(3, 16, 16)),
    "groups": lambda network: network.enc_block_1.append(MedNeXtBlock(3, 16, 16, groups=4)),
    "activation": lambda network: setattr(network.enc_block_0[0], "act", nn.GELU(approximate="tanh")),
    "norm": lambda network: setattr(network.enc_block_0[0], "norm", nn.BatchNorm3d(8)),
    "dropout": lambda network: network.bottleneck.append(nn.Dropout()),
    "no bias": lambda network: setattr(network.down_0, "conv2", nn.Conv3d(8, 16, 1, bias=False)),
    "padding mode": lambda network: setattr(network.enc_block_0[0].conv1, "padding_mode", "reflect"),
    "float64": lambda network: network.double(),
    "bfloat16 head": lambda network: network.out_0.bfloat16(),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_network_takes_the_plain_path(alteration):
    network, x = make_network(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert dispatched(network, x)
        ALTERATIONS[alteration](network)
        assert not dispatched(network, x)


def test_a_hook_on_all_modules_is_called():
    network, x, seen = make_network(), torch.randn(1, 1, 16, 16, 16), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            network(x)
    finally:
        handle.remove()
    assert network.bottleneck[0].conv1 in seen


def test_gradients_and_transforms_take_the_plain_path():
    network, x = make_network(), torch.randn(1, 1, 16, 16, 16)
    assert network(x).requires_grad
    network.requires_grad_(False)
    assert network(x.clone().requires_grad_()).requires_grad
    tangent = torch.func.jvp(network, (x,), (torch.ones_like(x),))[1]
    assert tangent.abs().max() > 0
    with torch.autograd.forward_ad.dual_level():
        dual = network(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    assert_same(torch.vmap(network)(torch.stack([x, x]))[1], plainly(network, x))


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: using_backend("plain"),
        lambda: FlopCounterMode(display=False),
        lambda: torch.device("cpu"),
        lambda: torch.backends.mkldnn.flags(enabled=False),
    ],
)
def test_whatever_observes_or_changes_operations_takes_the_plain_path(context):
    network, x = make_network(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad(), context():
        assert not dispatched(network, x)
    with torch.no_grad():
        assert dispatched(network, x)


def test_tracing_scripting_and_export_record_the_modules():
    network, x = make_network(), torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = plainly(network, x)
        assert_same(network(x), expected)  # so that there is memory to reuse
        assert_same(torch.jit.script(network)(x), expected)
        assert_same(torch.jit.trace(network, x)(x), expected)
        program = torch.export.export(network, (x,))
        assert_same(program.module()(x), expected)
    assert any("group_norm" in str(node.target) for node in program.graph.nodes)


# --- reused memory that nobody notices -------------------------------------------------------------------------------


def test_results_stay_when_the_network_is_used_again():
    network = make_network()
    first, second = torch.randn(2, 1, 1, 32, 16, 16).unbind()
    with torch.no_grad():
        results = [network(first), network(second), network(first)]
        kept = [result.clone() for result in results]
        network(torch.randn(1, 1, 48, 32, 32))
    for result, copied in zip(results, kept):
        assert torch.equal(result, copied)
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


def test_threads_do_not_disturb_each_other():
    networks = [make_network(), make_network(kernel_size=5)]
    xs = [torch.randn(1, 1, 32, 32, 16 * (1 + i % 2)) for i in range(8)]

    def run(i):
        with torch.no_grad():
            return networks[i % 2](xs[i])

    expected = [run(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for result, one in zip(pool.map(run, list(range(8)) * 2), expected * 2):
            assert_same(result, one)


def test_copies_and_pickles_hold_no_memory():
    network, x = make_network(), torch.randn(1, 1, 32, 32, 32)
    fresh = len(pickle.dumps(network))
    with torch.no_grad():
        expected = network(x)
        assert len(pickle.dumps(network)) == fresh
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert other.state_dict().keys() == network.state_dict().keys()
            assert torch.equal(other(x), expected)


def test_memory_is_freed_with_the_network():
    network, x = make_network(), torch.randn(1, 1, 32, 32, 32)
    with patch.object(memory, "SMALLEST", 256), torch.no_grad():
        network(x)
    assert memory._unused
    del network
    gc.collect()
    assert not memory._unused


def test_a_training_step_after_inference_takes_no_more_memory_than_it_needs():
    network, x = make_network(), torch.randn(1, 1, 32, 32, 32)
    with patch.object(memory, "SMALLEST", 256):
        held = []
        for infer_first in (False, True):
            memory.release()
            if infer_first:
                with torch.no_grad():
                    network.eval()(x)
            network.train()(x).sum().backward()
            held.append(sum(block.nbytes for block in memory._unused.values()))
    memory.release()
    assert held[1] <= 1.1 * held[0]


def test_a_meta_tensor_comes_back_as_from_the_modules():
    network = make_network()
    x = MetaTensor(torch.randn(2, 1, 32, 16, 16), affine=torch.diag(torch.tensor([2.0, 1, 1, 1])), meta={"name": "x"})
    x.is_batch = True
    with torch.no_grad():
        expected = plainly(network, x)
        with patch.object(cpu_network, "run", wraps=cpu_network.run) as run:
            result = network(x)
    run.assert_called_once()
    assert type(result) is type(expected) is MetaTensor
    assert result.is_batch == expected.is_batch
    assert result.meta.keys() == expected.meta.keys() and result.meta["name"] == expected.meta["name"]
    assert torch.equal(torch.as_tensor(result.affine), torch.as_tensor(expected.affine))
    assert result.applied_operations == expected.applied_operations
    assert_same(result.as_tensor(), expected.as_tensor())


def test_the_backend_named_plain_never_uses_it():
    network, x = make_network(), torch.randn(1, 1, 16, 16, 16)
    set_backend("plain")
    with torch.no_grad():
        assert not is_fast(network, x)
