"""The Triton kernels against float64 formulas: ``test_triton`` runs this file under Triton's interpreter, and
``tests/gpu/test_kernels.py`` on a GPU.

Channels, voxels and batch are no powers of two, sizes exceed a tile where they can, and every program does several
tiles: the numbers of programs are cut down.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mednext_monai.networks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, using_backend
from mednext_monai.networks.backends.triton import depthwise, operators, pointwise, statistics
from mednext_monai.networks.backends.triton.operators import depthwise_conv3d, norm_mlp

DEVICE = "cpu" if operators.interpreted else "cuda"
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    assert operators.interpreted or torch.cuda.is_available()
    torch.manual_seed(0)
    monkeypatch.setattr(depthwise, "PROGRAMS", 6)
    monkeypatch.setattr(pointwise, "PROGRAMS", 4)
    monkeypatch.setattr(statistics, "PARTS", 2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # of what they are compared with
        yield


def randn(*size) -> torch.Tensor:
    return torch.randn(*size, device=DEVICE)


def gradients(function, arguments, weight):
    """Return the output of ``function`` and the gradients of its arguments, for the loss (output * weight).sum()."""
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    output = function(*arguments)
    return output.detach(), *torch.autograd.grad((output * weight.to(output.dtype)).sum(), arguments)


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root mean square of the error, relative to that of the exact tensor."""
    return rms(x.double() - exact) / rms(exact)


def torch_depthwise(stride: int, transposed: bool):
    convolution = F.conv_transpose3d if transposed else F.conv3d
    return lambda x, w, b: convolution(x, w, b, stride=stride, padding=w.shape[-1] // 2, groups=x.shape[1])


def depthwise_arguments(channels: int, size: tuple, k: int) -> list[torch.Tensor]:
    return [randn(2 if k == 3 else 1, channels, *size), randn(channels, 1, k, k, k), randn(channels)]


@pytest.mark.parametrize(
    "k, stride, transposed, channels, size",
    [
        (3, 1, False, 5, (1, 3, 33)),
        (3, 1, False, 67, (1, 1, 2)),
        (3, 2, False, 5, (2, 3, 5)),
        (3, 2, True, 5, (2, 1, 2)),
        (5, 1, False, 3, (2, 2, 3)),
        (5, 2, False, 3, (1, 2, 3)),
        (5, 2, True, 3, (1, 1, 2)),
        (1, 1, False, 3, (2, 2, 2)),
    ],
)
def test_depthwise_convolution_and_its_gradients(k, stride, transposed, channels, size):
    arguments = depthwise_arguments(channels, size, k)
    reference = torch_depthwise(stride, transposed)
    arguments64 = [argument.double() for argument in arguments]
    weight = torch.randn_like(reference(*arguments64))
    exact = gradients(reference, arguments64, weight)
    ours = gradients(lambda x, w, b: depthwise_conv3d(x, w, b, stride, transposed), arguments, weight)
    for actual, expected in zip(ours, exact):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    assert ours[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", HALVES)
def test_depthwise_convolution_in_half_precision_is_no_less_accurate_than_torch(dtype):
    arguments = depthwise_arguments(5, (2, 3, 4), 3)
    half = [argument.to(dtype) for argument in arguments]
    exact_arguments = [argument.double() for argument in half]
    reference = torch_depthwise(1, False)
    weight = randn(2, 5, 2, 3, 4).to(dtype).double()
    exact = gradients(reference, exact_arguments, weight)
    ours = gradients(lambda x, w, b: depthwise_conv3d(x, w, b, 1, False), half, weight)
    for actual, theirs, expected in zip(ours, gradients(reference, half, weight), exact):
        assert actual.dtype == dtype
        assert error(actual, expected) <= 1.05 * error(theirs, expected)


def torch_norm_mlp(y, gamma, beta, w2, b2, w3, b3, residual):
    h = F.group_norm(y, y.shape[1], gamma, beta, 1e-5)
    h = F.gelu(F.conv3d(h, w2[:, :, None, None, None], b2))
    return F.conv3d(h, w3[:, :, None, None, None], b3) + residual


@pytest.mark.parametrize("channels, expanded, outputs, size", [(5, 70, 7, (3, 4, 23)), (20, 24, 35, (1, 2, 3))])
def test_norm_mlp_and_its_gradients(channels, expanded, outputs, size):
    shapes = [(channels,), (channels,), (expanded, channels), (expanded,), (outputs, expanded), (outputs,)]
    y = 3 + randn(2, channels, *size)
    arguments = [y, *(0.5 * randn(shape) for shape in shapes), randn(2, outputs, *size)]
    weight = randn(2, outputs, *size).double()
    exact = gradients(torch_norm_mlp, [argument.double() for argument in arguments], weight)
    for actual, expected in zip(gradients(lambda *a: norm_mlp(*a, 1e-5)[0], arguments, weight), exact):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-6 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", HALVES)
def test_norm_mlp_in_half_precision_is_no_less_accurate_than_autocast(dtype):
    def autocast(*arguments):
        with torch.autocast(DEVICE, dtype):
            return torch_norm_mlp(*arguments)

    errors = []
    for _ in range(3):
        arguments = [0.5 * randn(shape) for shape in ((6,), (6,), (18, 6), (18,), (6, 18), (6,))]
        y, residual, weight = randn(3, 2, 6, 3, 4, 5).to(dtype)
        arguments = [y, *arguments, residual]
        exact = gradients(torch_norm_mlp, [argument.double() for argument in arguments], weight)
        for function in (lambda *a: norm_mlp(*a, 1e-5)[0], autocast):
            errors.append([error(a, e) for a, e in zip(gradients(function, arguments, weight), exact)])
    ours, theirs = torch.tensor(errors).view(3, 2, -1).square().mean(0)
    assert (ours <= theirs).all(), (ours, theirs)


def test_statistics_keep_their_digits_far_from_zero_and_for_constant_channels():
    x = randn(2, 5, 7, 6, 20) + torch.tensor([0.0, 1e3, -1e3, 10.0, 0.0], device=DEVICE).view(-1, 1, 1, 1)
    x[:, 4] = 7.0
    mean, rstd = statistics.instance_statistics(x.contiguous(memory_format=torch.channels_last_3d), 1e-5)
    variance64, mean64 = torch.var_mean(x.double().flatten(2), dim=2, correction=0)
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), torch.rsqrt(variance64 + 1e-5), rtol=1e-5, atol=0)


def make_block(kind: type, **kwargs) -> torch.nn.Module:
    torch.manual_seed(1)
    block = kind(3, 6, 6 if kind is MedNeXtBlock else 10, 3, **kwargs)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return block.to(DEVICE)


def block_gradients(block, x, backend, dtype=None):
    """Return output and gradients of input and parameters by name; of the depthwise bias, exactly 0, the size only."""
    x = x.clone().requires_grad_()
    with using_backend(backend), torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        output = block(x)
    names, parameters = zip(*getattr(block, "_orig_mod", block).named_parameters())  # without the compiled module
    weight = torch.linspace(-1, 1, output.numel(), dtype=x.dtype, device=x.device).view(output.shape)
    found = torch.autograd.grad((output * weight).sum(), [x, *parameters])
    result = dict(zip(("output", "x", *names), (output.detach(), *found)))
    assert result.pop("conv1.bias").abs().max() < 0.05 * result["norm.bias"].abs().max()
    return result


def assert_equal_gradients(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        atol = 1e-5 * value.abs().max().item()
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    "kind, use_residual, size",
    [
        (MedNeXtBlock, True, (3, 2, 4)),
        (MedNeXtBlock, False, (2, 2, 2)),
        (MedNeXtDownBlock, True, (3, 2, 4)),
        (MedNeXtUpBlock, True, (1, 1, 3)),
    ],
)
def test_a_block_computes_the_function_of_the_plain_one(kind, use_residual, size):
    block, x = make_block(kind, use_residual=use_residual), randn(2, 6, *size)
    assert_equal_gradients(block_gradients(block, x, "triton"), block_gradients(block, x, "plain"))


def test_a_block_under_autocast_is_no_less_accurate_than_the_plain_one():
    dtype = torch.bfloat16
    block, x = make_block(MedNeXtBlock), randn(2, 6, 3, 2, 5).to(dtype)  # of that type, as between blocks
    plain, triton = (block_gradients(block, x, backend, dtype) for backend in ("plain", "triton"))
    assert triton["output"].dtype == dtype
    exact = block_gradients(block.double(), x.double(), "plain")
    for name in ("output", "x"):  # the parameters' gradients are too few numbers for one draw to tell
        assert error(triton[name], exact[name]) <= error(plain[name], exact[name]), name


def test_checkpointing_and_compiling_change_nothing():
    block, x = make_block(MedNeXtBlock), randn(2, 6, 2, 2, 2)
    expected = block_gradients(block, x, "triton")
    checkpointed = make_block(MedNeXtBlock, use_checkpoint=True).train()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for other in (checkpointed, compiled):
        assert_equal_gradients(block_gradients(other, x, "triton"), expected)


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed package")
def test_distributed_training_reduces_the_gradients_of_every_parameter(tmp_path):
    block, x = make_block(MedNeXtBlock).train(), randn(1, 6, 4, 5, 3)
    with using_backend("plain"):
        block(x).square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(block, find_unused_parameters=False)
        with using_backend("triton"):
            for _ in range(2):  # an unused parameter is noticed at the second step
                block.zero_grad()
                parallel(x).square().mean().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [MedNeXtBlock, MedNeXtUpBlock])
def test_one_voxel_is_no_exception(kind):
    block, x = make_block(kind), randn(2, 6, 1, 1, 1)
    with using_backend("plain"):
        expected = block(x)
    with using_backend("triton"):
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("kwargs", [{"use_grn": True}, {"norm": "layer"}, {"groups": 3}])
def test_other_blocks_run_as_written(kwargs):
    block, x = make_block(MedNeXtBlock, **kwargs), randn(1, 6, 3, 2, 4)
    results = []
    for backend in ("plain", "triton"):
        with using_backend(backend):
            results.append(block(x))
    assert torch.equal(*results)
