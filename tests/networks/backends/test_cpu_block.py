"""Promises of training by one autograd function per block: the plain path's values and gradients, or the plain path."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.data import MetaTensor
from torch.autograd.graph import saved_tensors_hooks

from mednext_monai import memory
from mednext_monai.networks import MedNeXt, MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, using_backend
from mednext_monai.networks.backends.cpu import autograd, depthwise, pointwise, precision
from mednext_monai.networks.backends.cpu import block as cpu_block
from mednext_monai.networks.backends.cpu.common import BlockParameters

BLOCKS = {"same": MedNeXtBlock, "down": MedNeXtDownBlock, "up": MedNeXtUpBlock}
SIZE = (5, 6, 7)
CHANNELS_LAST = torch.channels_last_3d


def make_block(kind: str, dtype: torch.dtype = torch.float64, **options) -> torch.nn.Module:
    """A block of four channels whose norm has a weight and a bias of its own."""
    torch.manual_seed(0)
    block = BLOCKS[kind](3, 4, 4 if kind == "same" else 6, **{"expansion_ratio": 2, **options}).to(dtype)
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    return block


def make_input(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def run(module: torch.nn.Module, x: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """Outputs, and the gradients of a weighted sum of them with respect to input and parameters, by name."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    with using_backend(backend):
        outputs = module(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs).backward()
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)} | {"x": x.grad}
    return results | {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare relative to the largest value of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The norm takes away what conv1.bias adds: its true gradient is zero, what the plain path computes is noise.
        scale = 1 if name.endswith("conv1.bias") else max(value.abs().max().item(), 1e-3)
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The kinds of the blocks that the function has computed since the start of the test."""
    kinds = []

    def counted(x, parameters, stride, transposed, *rest):
        kinds.append("up" if transposed else {1: "same", 2: "down"}[stride])
        return autograd.block_function(x, parameters, stride, transposed, *rest)

    monkeypatch.setattr(cpu_block, "block_function", counted)
    return kinds


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks and slabs so small that the volumes of these tests have several."""
    monkeypatch.setattr(pointwise, "CHUNK_ELEMENTS", 400)
    monkeypatch.setattr(depthwise, "SLAB_ELEMENTS", 2 * 6 * 7 * 4)
    monkeypatch.setattr(memory, "SMALLEST", 256)


# --- the function alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_residual", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_are_those_of_finite_differences(kind, use_residual, small_chunks):
    block = make_block(kind, use_residual=use_residual)
    residual = () if kind == "same" or not use_residual else tuple(block.res_conv.parameters())
    modules = (block.conv1, block.norm, block.conv2, block.conv3)
    parameters = [p for module in modules for p in module.parameters()] + list(residual)

    def function(x, *values):
        values = BlockParameters(*values, *(() if residual else (None, None)))
        return autograd.block_function(x, values, block.stride, block.transposed, use_residual, 1e-5)

    x = make_input(2, 4, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


# --- blocks and networks against the plain path ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5}, {"kernel_size": 1}, {"use_residual": False}], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_2d_block_and_its_second_derivatives_equal_the_plain_path(kind, options, calls, small_chunks, monkeypatch):
    monkeypatch.setattr(cpu_block, "LEAST_VOXELS", {2: 0, 3: 0})
    torch.manual_seed(0)
    block = BLOCKS[kind](2, 4, 4 if kind == "same" else 6, expansion_ratio=2, **options).double()
    torch.nn.init.normal_(block.norm.weight)
    x = make_input(2, 4, 9, 7)
    expected = run(block, x, "plain")
    assert calls == []
    assert_same(run(block, x, "auto"), expected, 1e-10)
    assert_same(run(block, x.to(memory_format=torch.channels_last), "auto"), expected, 1e-10)
    assert calls == [kind] * 2
    small = make_input(1, 4, 3, 4).requires_grad_()
    with using_backend("auto"):
        assert torch.autograd.gradcheck(block, (small,), fast_mode=True)
        assert torch.autograd.gradgradcheck(block, (small,), fast_mode=True)


def test_small_2d_images_take_the_plain_path_which_is_faster(calls):
    block = BLOCKS["same"](2, 4, 4, expansion_ratio=2)
    for size, is_fast in ((63, False), (64, True)):
        block(torch.randn(1, 4, 64, size)).sum().backward()
        assert (calls == ["same"]) == is_fast


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5}, {"kernel_size": 7}, {"use_residual": False}], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_on_an_odd_size_equals_the_plain_path(kind, options, calls, small_chunks):
    x = make_input(2, 4, *SIZE)
    block = make_block(kind, **options)
    expected = run(block, x, "plain")
    assert calls == []
    assert_same(run(block, x, "auto"), expected, 1e-12)
    assert_same(run(block, x.to(memory_format=CHANNELS_LAST), "auto"), expected, 1e-12)
    assert calls == [kind] * 2
    assert torch.count_nonzero(block.conv1.bias.grad) == 0
    single = run(copy.deepcopy(block).float(), x.float(), "auto")
    assert_same({name: value.double() for name, value in single.items()}, expected, 1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_on_very_few_voxels_equals_the_plain_path(kind, size):
    block, x = make_block(kind, kernel_size=5), make_input(1, 4, *size)
    assert_same(run(block, x, "auto"), run(block, x, "plain"), 1e-9)


RATIOS = {"S": 2, "B": (2, 3, 4, 4, 4, 4, 4, 3, 2), "L": (3, 4, 8, 8, 8, 8, 8, 4, 3)}


@pytest.mark.parametrize(
    "ratios, kernel_size",
    [("S", 3), ("B", 5), pytest.param("S", 7, marks=pytest.mark.slow), pytest.param("L", 3, marks=pytest.mark.slow)],
)
def test_network_equals_the_plain_path(ratios, kernel_size, calls):
    torch.manual_seed(0)
    arguments = dict(base_channels=4, expansion_ratio=RATIOS[ratios], block_counts=(1,) * 9, kernel_size=kernel_size)
    network = MedNeXt(deep_supervision=True, **arguments).double().train()
    x = make_input(2, 1, 32, 16, 32)
    expected = run(network, x, "plain")
    assert_same(run(network, x, "auto"), expected, 1e-10)
    assert len(calls) == 17  # 9 stages of one block, 4 down, 4 up
    double = {name: value.double() for name, value in run(copy.deepcopy(network).float(), x.float(), "plain").items()}
    single = {name: value.double() for name, value in run(copy.deepcopy(network).float(), x.float(), "auto").items()}
    for name, value in expected.items():  # in float32 about as far from float64 as the plain path, or 2e-5
        if not name.endswith("conv1.bias"):
            scale = value.abs().max()
            error, plain_error = (((found[name] - value).abs().max() / scale).item() for found in (single, double))
            assert error < max(2e-5, 3 * plain_error), (name, error, plain_error)


def test_outputs_do_not_depend_on_the_size_of_chunks_beyond_rounding(monkeypatch):
    block, x = make_block("same", torch.float32), make_input(1, 4, *SIZE, dtype=torch.float32)
    expected = run(block, x, "auto")
    monkeypatch.setattr(pointwise, "CHUNK_ELEMENTS", 64)
    assert_same(run(block, x, "auto"), expected, 1e-5)


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def run_in_bfloat16(module: torch.nn.Module, x: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """Run under autocast, where bfloat16 pays; the gradients are those of the outputs in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return run(module, x, backend)


@pytest.fixture
def pays(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: True)


@pytest.mark.parametrize("size", [(6, 5, 7), (1, 1, 1), (2, 2, 3), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_in_bfloat16_errs_no_more_than_the_modules_under_autocast(kind, kernel_size, size, calls, pays):
    torch.manual_seed(0)
    block = BLOCKS[kind](3, 32, 32 if kind == "same" else 48, expansion_ratio=2, kernel_size=kernel_size)
    torch.nn.init.normal_(block.norm.weight)
    x = (make_input(2, 32, *size, dtype=torch.float32) + 1).bfloat16()
    exact = run(copy.deepcopy(block).double(), x.double(), "plain")
    modules = run_in_bfloat16(block, x, "plain")
    found = run_in_bfloat16(block, x.to(memory_format=CHANNELS_LAST), "auto")
    assert calls == [kind]
    assert found["output 0"].dtype == found["x"].dtype == torch.bfloat16
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        scale = max(value.abs().max().item(), 1e-3)
        error, of_modules = (((one[name].double() - value).abs().max() / scale).item() for one in (found, modules))
        if name == "conv1.bias":
            assert torch.count_nonzero(found[name]) == 0
        elif name == "x" or not name.startswith("output"):
            assert found[name].dtype == (torch.bfloat16 if name == "x" else torch.float32)
            assert error < max(2 * of_modules, 0.05), (name, error, of_modules)  # of few voxels, the norm amplifies it
        else:
            assert 1e-5 < error < 2 * of_modules, (name, error, of_modules)


def test_a_network_in_bfloat16_gives_gradients_as_near_as_the_modules_under_autocast(calls, pays):
    network, x = small(base_channels=16), make_input(1, 1, 32, 32, 32, dtype=torch.float32)
    exact = run(copy.deepcopy(network).double(), x.double(), "plain")
    modules, found = (run_in_bfloat16(network, x, backend) for backend in ("plain", "auto"))
    assert len(calls) == 17
    names = [name for name in exact if not name.endswith("conv1.bias")]
    errors, of_modules = (
        torch.stack([(one[name].double() - exact[name]).norm() / exact[name].norm() for name in names])
        for one in (found, modules)
    )
    assert 1e-3 < errors.median() < 1.2 * of_modules.median()
    assert errors.max() < 1.5 * of_modules.max()


def test_autocast_without_a_gain_trains_in_float32_bit_for_bit(monkeypatch, calls):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: False)
    block, x = make_block("same", torch.float32), make_input(1, 4, *SIZE, dtype=torch.float32)
    expected, found = run(block, x, "auto"), run_in_bfloat16(block, x, "auto")
    assert calls == ["same"] * 2
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_terms_smaller_than_half_a_unit_in_the_last_place_of_bfloat16_are_not_lost():
    rows, grad = torch.zeros(200_000, 2, dtype=torch.bfloat16), torch.rand(200_000, 2).add_(1).bfloat16()
    expected = grad.double().mul(0.7).add(1e-3).mean(0)  # a unit in the last place is 2**-7 of 1
    autograd._backward_norm(rows, torch.full((2,), 0.7), torch.zeros(2), torch.full((2,), 1e-3), grad)
    torch.testing.assert_close(grad.double().mean(0), expected, rtol=0, atol=1e-4)


def test_second_derivatives_under_autocast_are_those_of_the_modules_in_float32(pays):
    block, x = make_block("same", torch.float32), make_input(1, 4, *SIZE, dtype=torch.float32).requires_grad_()
    found = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = block(x)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=0, atol=0.03 * float(found[1].abs().max()))


def test_bfloat16_keeps_half_of_the_bytes_for_the_backward_pass(pays):
    kept = []
    block, x = BLOCKS["same"](3, 32, 32, expansion_ratio=2), torch.randn(1, 32, 16, 16, 16)
    for enabled in (True, False):
        sizes = []
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
            saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t),
        ):
            block(x)
        kept.append(sum(size for size in sizes if size > 10**5))
    assert kept[0] * 2 == kept[1] > 0


# --- what PyTorch offers ---------------------------------------------------------------------------------------------


def small(**options) -> MedNeXt:
    torch.manual_seed(0)
    arguments = dict(base_channels=4, expansion_ratio=2, block_counts=(1,) * 9, deep_supervision=True)
    return MedNeXt(**{**arguments, **options}).train()


def test_checkpointing_changes_nothing(calls):
    x = make_input(1, 1, 32, 32, 32, dtype=torch.float32)
    expected = run(small(), x, "auto")
    found = run(small(use_checkpoint=True), x, "auto")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(calls) == 17 + 2 * 17


def test_fewer_bytes_are_kept_for_the_backward_pass_than_half_of_the_plain_path():
    network, x = small(base_channels=8), make_input(1, 1, 32, 32, 32, dtype=torch.float32)

    def kept(backend: str) -> int:
        stored = {}

        def pack(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with using_backend(backend), saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = network(x)
        del outputs
        return sum(stored.values())

    assert kept("auto") < 0.45 * kept("plain")


@pytest.mark.parametrize("kind", BLOCKS)
def test_frozen_parts_get_no_gradient_and_the_others_theirs(kind):
    x = make_input(2, 4, *SIZE)
    for frozen in ("conv1", "norm", "conv2", "conv3", "conv1 norm conv2", "norm conv2 conv3"):
        block = make_block(kind)
        for name in frozen.split():
            getattr(block, name).requires_grad_(False)
        expected = run(block, x, "plain")
        assert f"{frozen.split()[0]}.weight" not in expected
        assert_same(run(block, x, "auto"), expected, 1e-12)
    block = make_block(kind)
    y = block(x)  # an input without gradient, as after a frozen stem
    y.square().sum().backward()
    found = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    with using_backend("plain"):
        block(x).square().sum().backward()
    assert_same(found, {name: p.grad for name, p in block.named_parameters()}, 1e-12)


def test_gradients_of_gradients_are_those_of_the_plain_path():
    block, x = make_block("down"), make_input(1, 4, *SIZE).requires_grad_()
    results = []
    for backend in ("auto", "plain"):
        block.zero_grad()
        x.grad = None
        with using_backend(backend):
            (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
            grad.square().sum().backward()
        results.append({"x": x.grad} | {name: p.grad.clone() for name, p in block.named_parameters()})
    assert results[0]["conv1.weight"].abs().max() > 0
    del results[0]["conv1.bias"], results[1]["conv1.bias"]
    assert_same(*results, 1e-8)


def test_backward_twice_gives_the_same_twice():
    block, x = make_block("up"), make_input(1, 4, *SIZE)
    loss = block(x).square().sum()
    loss.backward(retain_graph=True)
    first = {name: p.grad.clone() for name, p in block.named_parameters()}
    loss.backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * first[name], rtol=1e-12, atol=1e-12)


def test_a_parameter_changed_before_the_backward_pass_is_an_error():
    block = make_block("same")
    loss = block(make_input(1, 4, *SIZE)).sum()
    with torch.no_grad():
        block.conv3.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_train_alike(calls):
    network, x = small(), make_input(1, 1, 16, 16, 32, dtype=torch.float32)
    expected = run(network, x, "auto")
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(value, expected[name]) for name, value in run(twin, x, "auto").items())
    assert len(calls) == 3 * 17


def test_a_meta_tensor_keeps_its_metadata(calls):
    block = make_block("same")
    x = MetaTensor(make_input(2, 4, *SIZE), meta={"filename_or_obj": "case", "spacing": [1.0, 2.0, 3.0]})
    with using_backend("plain"):
        expected = block(x)
    found = block(x)
    assert calls == ["same"]
    assert type(found) is MetaTensor
    assert found.meta.keys() == expected.meta.keys()
    assert found.meta["filename_or_obj"] == "case"
    assert found.is_batch == expected.is_batch
    found.sum().backward()
    assert block.conv1.weight.grad.abs().max() > 0


def test_the_caller_sees_the_default_strides_of_a_contiguous_network():
    outputs = small()(make_input(1, 1, 16, 16, 32, dtype=torch.float32))
    assert all(y.is_contiguous() for y in outputs)


# --- everything else goes the plain way ------------------------------------------------------------------------------


def fallbacks():
    def hooked(block):
        block.conv2.register_forward_hook(lambda *args: None)

    def tanh(block):
        block.act = torch.nn.GELU(approximate="tanh")

    def replaced(block):
        block.conv3 = torch.nn.Sequential(block.conv3)

    def parametrized(block):
        torch.nn.utils.parametrizations.weight_norm(block.conv2)

    def strided(block):
        block.conv1.stride = (2, 2, 2)
        block.use_residual = False

    def overridden(block):
        block.norm.forward = lambda x: 2 * x

    def dilated(block):
        block.conv1.dilation, block.conv1.padding = (2, 2, 2), (2, 2, 2)

    return [hooked, tanh, replaced, parametrized, strided, overridden, dilated]


@pytest.mark.parametrize("change", fallbacks(), ids=lambda change: change.__name__)
def test_a_changed_block_goes_the_plain_way(change, calls):
    block, x = make_block("same"), make_input(1, 4, *SIZE)
    change(block)
    assert_same(run(block, x, "auto"), run(block, x, "plain"), 1e-12)
    assert calls == []


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"use_grn": True}, {"groups": 2}], ids=str)
def test_another_block_goes_the_plain_way(options, calls):
    torch.manual_seed(0)
    block, x = MedNeXtBlock(3, 4, 4, **options).double(), make_input(1, 4, *SIZE)
    assert_same(run(block, x, "auto"), run(block, x, "plain"), 1e-12)
    assert not cpu_block.takes(block, x)
    assert calls == []


def test_a_subclass_goes_its_own_way(calls):
    class Doubled(MedNeXtBlock):
        def _forward(self, x):
            return 2 * super()._forward(x)

    block, x = Doubled(3, 4, 4).double(), make_input(1, 4, *SIZE)
    assert_same(run(block, x, "auto"), run(block, x, "plain"), 1e-12)
    assert calls == []


def test_other_modes_go_the_plain_way(calls):
    block, x = make_block("same"), make_input(1, 4, *SIZE)
    expected = run(block, x, "plain")["output 0"]
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
    with torch.autocast("cpu", dtype=torch.float16):
        found = block.float()(x.float())
        with using_backend("plain"):
            assert torch.equal(found, block(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cpu_block.takes(block.double(), x)
    block.double().zero_grad()
    values = torch.func.grad(lambda p: torch.func.functional_call(block, p, x).square().sum())(
        dict(block.named_parameters())
    )
    block(x).square().sum().backward()
    assert calls == ["same"]
    torch.testing.assert_close(values["conv1.weight"], block.conv1.weight.grad)
    calls.clear()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(block(dual)).tangent is not None
    torch.testing.assert_close(torch.jit.trace(block, x)(x), expected)
    torch.testing.assert_close(torch.jit.script(block)(x), expected)
    torch.testing.assert_close(torch.compile(block, backend="eager")(x), expected)
    assert calls == []
