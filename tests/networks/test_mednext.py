"""Promises of the network: it is the published one to the digit, and it works with what PyTorch and MONAI offer."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from helpers.reference import fill_weights, load_reference, make_input
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from mednext_monai.networks import (
    SHAPE_FACTOR,
    VARIANTS,
    MedNeXt,
    MedNeXtBlock,
    Variant,
    create_mednext,
    using_backend,
)

VARIANT_FIGURES = load_reference("variants")
OPTION_FIGURES = load_reference("options")
NATIVE_NAMES = {
    "n_channels": "base_channels",
    "n_classes": "out_channels",
    "exp_r": "expansion_ratio",
    "enc_kernel_size": "encoder_kernel_size",
    "dec_kernel_size": "decoder_kernel_size",
    "do_res": "use_residual",
    "do_res_up_down": "use_residual_resampling",
    "norm_type": "norm",
    "grn": "use_grn",
}
TINY = dict(base_channels=4, expansion_ratio=2, block_counts=(1,) * 9, out_channels=3)


def small(**kwargs) -> MedNeXt:
    torch.manual_seed(0)
    return MedNeXt(**{**TINY, **kwargs})


def native_arguments(upstream: dict) -> dict:
    """Translate the original's arguments into those of MedNeXt."""
    arguments = {NATIVE_NAMES.get(name, name): value for name, value in upstream.items() if value is not None}
    if "dim" in arguments:
        arguments["spatial_dims"] = int(arguments.pop("dim")[0])
    if "checkpoint_style" in arguments:
        arguments["use_checkpoint"] = arguments.pop("checkpoint_style") == "outside_block"
    return arguments


def assert_outputs(network: MedNeXt, x: torch.Tensor, figures: dict) -> torch.Tensor:
    """Compare outputs and loss with the recorded ones and return the loss."""
    outputs = network(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(figures["outputs"])
    for output, recorded in zip(outputs, figures["outputs"]):
        assert list(output.shape) == recorded["shape"]
        value = output.detach().flatten()[recorded["index"]]
        expected = torch.tensor(recorded["value"])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        assert output.std().item() == pytest.approx(recorded["std"], rel=1e-4)
        assert output.mean().item() == pytest.approx(recorded["mean"], abs=1e-4 * recorded["std"])
    loss = sum(output.double().square().mean() for output in outputs)
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-3)
    return loss


def assert_gradients(network: MedNeXt, loss: torch.Tensor, figures: dict) -> None:
    """Compare gradient norms with the recorded ones; every parameter has a gradient."""
    loss.backward()
    parameters = dict(network.named_parameters())
    for name, norm in figures["grad_norm"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []


# --- the published network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANT_FIGURES)
def test_variant_has_the_published_parameters(name):
    variant, kernel = name.split("_k")
    figures = VARIANT_FIGURES[name]
    with torch.device("meta"):
        network = create_mednext(variant, int(kernel), out_channels=3, deep_supervision=True)
        plain = create_mednext(variant, int(kernel), out_channels=3)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == {key: shape for key, shape in figures["state_dict"].items() if key != "dummy_tensor"}
    assert sum(p.numel() for p in network.parameters()) == figures["parameters"]
    assert sum(p.numel() for p in plain.parameters()) == figures["parameters_without_deep_supervision"]


@pytest.mark.parametrize("name", VARIANT_FIGURES)
def test_variant_computes_the_published_outputs_loss_and_gradients(name):
    variant, kernel = name.split("_k")
    network = fill_weights(create_mednext(variant, int(kernel), out_channels=3, deep_supervision=True)).train()
    figures = VARIANT_FIGURES[name]
    x = make_input(figures["input_shape"])
    network, x = (item.to(memory_format=torch.channels_last_3d) for item in (network, x))  # faster on a CPU
    assert_gradients(network, assert_outputs(network, x, figures), figures)


@pytest.mark.parametrize("name", OPTION_FIGURES)
def test_option_computes_the_published_outputs_loss_and_gradients(name):
    figures = OPTION_FIGURES[name]
    network = fill_weights(MedNeXt(**native_arguments(figures["upstream_arguments"]))).train()
    loss = assert_outputs(network, make_input(figures["input_shape"]), figures)
    assert_gradients(network, loss, figures)


def test_seed_gives_the_initial_weights_of_creation_order():
    names = list(small(deep_supervision=True).state_dict())
    first = [name.split(".")[0] for name in names]
    order = list(dict.fromkeys(first))
    assert order[:3] == ["stem", "enc_block_0", "down_0"]
    assert order[8:11] == ["down_3", "bottleneck", "up_3"]
    assert order[-5:] == [f"out_{i}" for i in range(5)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_large_variants_checkpoint_and_arguments_win_over_the_variant(variant):
    with torch.device("meta"):
        assert create_mednext(variant).bottleneck[0].use_checkpoint is (variant in "ML")
        network = create_mednext(variant, use_checkpoint=variant in "SB", block_counts=(1,) * 9, base_channels=8)
    assert network.bottleneck[0].use_checkpoint is (variant in "SB")
    assert len(network.bottleneck) == 1
    assert network.stem.out_channels == 8


def test_a_variant_with_grn_is_one_row(monkeypatch):
    monkeypatch.setitem(VARIANTS, "G", Variant((2,) * 9, (1,) * 9, use_grn=True, base_channels=4))
    with torch.device("meta"):
        network = create_mednext("G")
    assert network.stem.out_channels == 4
    grn = {name for name, module in network.named_modules() if getattr(module, "use_grn", False)}
    assert len(grn) == 16 and "down_0" not in grn  # as in the authors' code


# --- training and evaluation -----------------------------------------------------------------------------------------


def run_counting_saved_bytes(network: MedNeXt, x: torch.Tensor) -> tuple[list, dict, int]:
    """Return outputs, gradients and the bytes that autograd keeps from the forward to the backward pass."""
    stored = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(x)
    kept = sum(stored.values())
    sum(output.square().mean() for output in outputs).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return [output.detach() for output in outputs], gradients, kept


CHECKPOINTS = (False, True, "block", "expansion")


@pytest.mark.parametrize("use_checkpoint", [True, "expansion"])
@pytest.mark.parametrize("options", [{}, {"norm": "layer"}, {"use_grn": True}, {"spatial_dims": 2}], ids=str)
def test_checkpointing_changes_no_output_and_no_gradient_and_saves_memory(options, use_checkpoint):
    plain = small(deep_supervision=True, **options).train()
    checkpointed = small(deep_supervision=True, use_checkpoint=use_checkpoint, **options).train()
    x = make_input([1, 1] + [32] * plain.spatial_dims)
    outputs, gradients, _ = run_counting_saved_bytes(plain, x)
    with using_backend("plain"):  # whose activations checkpointing was made for
        kept = run_counting_saved_bytes(small(deep_supervision=True, **options).train(), x)[2]
    same_outputs, same_gradients, kept_checkpointed = run_counting_saved_bytes(checkpointed, x)
    assert all(torch.equal(one, other) for one, other in zip(outputs, same_outputs))
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-5, atol=1e-7 + 1e-5 * gradient.abs().max())
    assert kept_checkpointed < 0.4 * kept


@pytest.mark.parametrize("options", [{}, {"norm": "layer"}, {"use_grn": True}, {"spatial_dims": 2}], ids=str)
def test_whatever_is_computed_again_outputs_and_gradients_are_the_same_to_the_last_bit(options):
    x = make_input([1, 1] + [32, 16, 16][: options.get("spatial_dims", 3)]).double()
    found, kept = {}, {}
    with using_backend("plain"):
        for use_checkpoint in CHECKPOINTS:
            network = small(deep_supervision=True, use_checkpoint=use_checkpoint, **options).double().train()
            *found[use_checkpoint], kept[use_checkpoint] = run_counting_saved_bytes(network, x)
    outputs, gradients = found[False]
    for use_checkpoint in CHECKPOINTS[1:]:
        same_outputs, same_gradients = found[use_checkpoint]
        assert all(torch.equal(one, other) for one, other in zip(outputs, same_outputs)), use_checkpoint
        assert all(torch.equal(same_gradients[name], gradients[name]) for name in gradients), use_checkpoint
    assert kept[True] == kept["block"] < kept["expansion"] < 0.6 * kept[False]


def test_the_optimized_implementation_stores_no_expanded_tensor_and_so_needs_no_checkpoint(monkeypatch):
    x = make_input([1, 1, 32, 16, 16]).double()
    with using_backend("plain"):
        expected, gradients, _ = run_counting_saved_bytes(small(deep_supervision=True).double().train(), x)
    monkeypatch.setattr("mednext_monai.networks.blocks.checkpoint", None)  # is not called
    network = small(deep_supervision=True, use_checkpoint="expansion").double().train()
    outputs, same_gradients, kept = run_counting_saved_bytes(network, x)
    assert kept == run_counting_saved_bytes(small(deep_supervision=True).double().train(), x)[2]
    for output, other in zip(outputs, expected):
        torch.testing.assert_close(output, other, rtol=1e-12, atol=1e-12 * other.abs().max())
    for name, gradient in gradients.items():
        noise = 1e-9 if name.endswith("conv1.bias") else 1e-12 * gradient.abs().max()
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-10, atol=noise)


def test_a_variant_is_built_with_what_is_stated_or_as_published():
    with torch.device("meta"):
        for use_checkpoint, stored in ((False, False), (True, True), ("block", True), ("expansion", "expansion")):
            for variant in VARIANTS:
                network = create_mednext(variant, use_checkpoint=use_checkpoint, block_counts=(1,) * 9, base_channels=2)
                assert {block.use_checkpoint for block in network.modules() if isinstance(block, MedNeXtBlock)} == {
                    stored
                }


@pytest.mark.parametrize(("use_checkpoint", "function"), [("block", "_forward"), ("expansion", "_pointwise")])
def test_what_is_computed_again_in_plain_modules(monkeypatch, use_checkpoint, function):
    names = []
    monkeypatch.setattr(
        "mednext_monai.networks.blocks.checkpoint", lambda f, x, **kwargs: names.append(f.__name__) or f(x)
    )
    network = small(use_checkpoint=use_checkpoint)
    with using_backend("plain"):
        network.eval()(make_input([1, 1, 16, 16, 32]))
        assert names == []
        network.train()(make_input([1, 1, 16, 16, 32]))
    assert names == [function] * 17  # 9 stages of one block, 4 down, 4 up


def test_checkpointing_happens_in_training_only(monkeypatch):
    calls = []
    monkeypatch.setattr("mednext_monai.networks.blocks.checkpoint", lambda f, x, **kwargs: calls.append(kwargs) or f(x))
    network = small(use_checkpoint=True)
    network.eval()(make_input([1, 1, 16, 16, 32]))
    assert calls == []
    network.train()(make_input([1, 1, 16, 16, 32]))
    assert calls == [{"use_reentrant": False}] * 17  # 9 stages of one block, 4 down, 4 up


def test_training_gives_five_outputs_and_evaluation_one_without_computing_the_others():
    network = small(deep_supervision=True, in_channels=2)
    x = make_input([2, 2, 32, 16, 48])
    outputs = network.train()(x)
    assert [tuple(y.shape) for y in outputs] == [(2, 3, 32 >> i, 16 >> i, 48 >> i) for i in range(5)]
    calls = []
    for level in range(5):
        getattr(network, f"out_{level}").register_forward_hook(lambda *args, level=level: calls.append(level))
    y = network.eval()(x)
    assert calls == [0]
    torch.testing.assert_close(y, outputs[0])  # no dropout, no batch statistics


def test_without_deep_supervision_training_gives_one_tensor():
    assert small().train()(make_input([1, 1, 16, 16, 32])).shape == (1, 3, 16, 16, 32)


def test_the_smallest_input_has_one_voxel_at_the_bottleneck():
    network = MedNeXt(base_channels=4, deep_supervision=True)
    for mode in (True, False):
        output = network.train(mode)(torch.rand(1, 1, 16, 16, 16))
        assert all(torch.isfinite(tensor).all() for tensor in (output if mode else (output,)))


def test_one_voxel_per_channel_at_the_bottleneck_keeps_loss_and_gradients_finite():
    network = small(deep_supervision=True).train()
    outputs = network(make_input([1, 1, 16, 16, 32]))
    sum(y.square().mean() for y in outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_five_outputs_are_what_monais_deep_supervision_loss_takes():
    network = small(deep_supervision=True).train()
    label = (make_input([1, 1, 16, 32, 16]) > 0).float()
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True), weights=[16, 8, 4, 2, 1])
    value = loss(network(make_input([1, 1, 16, 32, 16])), label)
    value.backward()
    assert value.item() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_encoder_and_decoder_kernels_win_over_the_common_one():
    def kernels(**kwargs):
        network = small(**kwargs)
        modules = (
            "enc_block_0.0",
            "enc_block_3.0",
            "down_0",
            "down_3",
            "bottleneck.0",
            "up_3",
            "up_0",
            "dec_block_0.0",
        )
        state = network.state_dict()
        return [state[f"{name}.conv1.weight"].shape[-1] for name in modules]

    assert kernels(kernel_size=3) == [3] * 8
    assert kernels(kernel_size=3, encoder_kernel_size=5) == [5] * 4 + [3] * 4
    assert kernels(kernel_size=3, decoder_kernel_size=7) == [3] * 4 + [7] * 4
    assert kernels(kernel_size=3, encoder_kernel_size=1, decoder_kernel_size=5) == [1] * 4 + [5] * 4


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, message",
    [
        ([1, 16, 16, 16], "spatial_dims=3 expects an input of 5 dimensions (batch, channel, space), got shape (1, 16,"),
        ([1, 1, 16, 16, 16, 1], "expects an input of 5 dimensions"),
        ([1, 2, 16, 16, 16], "expects 1 input channels, got shape (1, 2, 16, 16, 16)"),
        ([1, 1, 16, 24, 16], "spatial sizes divisible by 16, got (16, 24, 16)"),
        ([1, 1, 40, 16, 16], "spatial sizes divisible by 16, got (40, 16, 16)"),
    ],
)
def test_input_that_does_not_fit_is_an_error_that_says_so(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"base_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"expansion_ratio": (2, 2)}, "expansion_ratio must hold 9 positive integers, got [2, 2]"),
        ({"expansion_ratio": 0}, "expansion_ratio must hold 9 positive integers"),
        ({"block_counts": (1,) * 8}, "block_counts must hold 9 positive integers"),
        ({"block_counts": (1,) * 8 + (0,)}, "block_counts must hold 9 positive integers"),
        ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
        ({"encoder_kernel_size": 0}, "kernel_size must be a positive odd integer, got 0"),
        ({"decoder_kernel_size": 2.5}, "kernel_size must be a positive odd integer, got 2.5"),
        ({"norm": "batch"}, "norm must be one of ('group', 'layer'), got 'batch'"),
    ],
)
def test_arguments_outside_what_is_allowed_are_errors_that_say_so(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**arguments)


def test_unknown_variant_is_an_error_that_names_the_four():
    with pytest.raises(ValueError, match=re.escape("one of ['S', 'B', 'M', 'L'], got 'XL'")):
        create_mednext("XL")


def test_shape_rule_is_offered_as_methods():
    network = small()
    assert network.shape_factor() == [16, 16, 16]
    assert network.is_valid_shape(torch.zeros(1, 1, 32, 16, 48))
    assert not network.is_valid_shape(torch.zeros(1, 1, 32, 17, 48))
    assert small(spatial_dims=2).shape_factor() == [16, 16] == [SHAPE_FACTOR] * 2


# --- what PyTorch offers ---------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[{}, {"norm": "layer", "use_grn": True, "use_checkpoint": True}, {"use_checkpoint": "expansion"}],
    ids=str,
)
def evaluated(request):
    """A network in evaluation mode, an input of another size than it is traced with, and its modules' output."""
    network = small(deep_supervision=True, **request.param).eval()
    x = make_input([2, 1, 32, 48, 64])
    with torch.no_grad(), using_backend("plain"):
        return network, x, network(x)


def test_trace_works_for_other_sizes_than_traced(evaluated):
    network, x, y = evaluated
    traced = torch.jit.trace(network, torch.zeros(1, 1, 32, 32, 32), check_trace=False)
    torch.testing.assert_close(traced(x), y)


def test_script_works_and_survives_saving(evaluated, tmp_path):
    network, x, y = evaluated
    torch.jit.script(network).save(tmp_path / "model.ts")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), y)


def test_export_works(evaluated):
    network, x, y = evaluated
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), y)


def test_export_works_for_dynamic_sizes(evaluated):
    network, x, y = evaluated
    sizes = {i + 2: 16 * torch.export.Dim(f"n{i}", min=2, max=8) for i in range(3)}
    program = torch.export.export(network, (torch.zeros(2, 1, 64, 32, 48),), dynamic_shapes=(sizes,))
    torch.testing.assert_close(program.module()(x), y)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("use_checkpoint", [False, True, "expansion"])
def test_compile_gives_the_same_outputs_and_gradients(backend, use_checkpoint):
    network = small(deep_supervision=True, use_checkpoint=use_checkpoint).train()
    x = make_input([1, 1, 16, 16, 32])
    outputs, gradients, _ = run_counting_saved_bytes(copy.deepcopy(network), x)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend)(x)
    sum(output.square().mean() for output in compiled).backward()
    for output, expected in zip(compiled, outputs):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in network.named_parameters():
        # The norm takes away what conv1.bias adds to a channel: its true gradient is zero, what is computed is noise.
        noise = 1e-4 if name.endswith("conv1.bias") else 1e-6 + 1e-3 * gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=noise)


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "layer", "use_grn": True}, {"use_checkpoint": True}, {"use_checkpoint": "expansion"}],
    ids=str,
)
def test_bfloat16_autocast_trains(options):
    network = small(deep_supervision=True, **options).train()
    x = make_input([1, 1, 16, 16, 32])
    expected = network(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(x)
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    assert outputs[0].dtype == torch.bfloat16
    assert (outputs[0].float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize("spatial_dims, memory_format", [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_gives_the_same_output(spatial_dims, memory_format):
    network = small(spatial_dims=spatial_dims).eval()
    x = make_input([2, 1] + [32] * spatial_dims)
    expected = network(x)
    y = network.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_equal_and_independent(duplicate):
    network = small(use_checkpoint=True).eval()
    x = make_input([1, 1, 16, 16, 32])
    twin, expected = duplicate(network), network(x)
    assert torch.equal(twin(x), expected)
    torch.nn.init.zeros_(twin.stem.weight)
    assert torch.equal(network(x), expected)


@pytest.fixture
def process_group(tmp_path):
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("no process group of our own")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("use_checkpoint", [False, True, "expansion"])
def test_distributed_training_finds_no_unused_parameter(process_group, use_checkpoint):
    network = small(deep_supervision=True, use_checkpoint=use_checkpoint).train()
    parallel = DistributedDataParallel(network, find_unused_parameters=False)
    for _ in range(3):  # an unused parameter is noticed at the second step
        sum(y.square().mean() for y in parallel(make_input([1, 1, 16, 16, 32]))).backward()
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):  # the check itself works
        for _ in range(2):
            parallel(make_input([1, 1, 16, 16, 32]))[0].square().mean().backward()
