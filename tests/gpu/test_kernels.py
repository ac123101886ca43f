"""Every Triton kernel on a GPU against float64: the cases that run under the interpreter, and published sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mednext_monai.networks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, using_backend
from mednext_monai.networks.backends.triton import operators
from mednext_monai.networks.backends.triton.operators import depthwise_conv3d, norm_mlp
from mednext_monai.tuning.errors import worst

needs_triton = pytest.mark.skipif(not operators.installed, reason="the package triton is not installed")
TESTS = Path(__file__).parents[1] / "networks" / "backends" / "triton_kernels.py"


@needs_triton
def test_the_cases_of_the_interpreter(gpu):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu or not gpu", "-p", "no:cacheprovider", str(TESTS)]
    result = subprocess.run(command, cwd=TESTS.parents[3], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def computed(function, arguments, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    output = function(*arguments)
    gradients = torch.autograd.grad(output, arguments, weight.to(output.dtype))
    return {"output": output.detach(), **{f"gradient {number}": found for number, found in enumerate(gradients)}}


def assert_as_accurate(kernels, plain, arguments, dtype: torch.dtype, autocast: bool = True) -> None:
    """Compare with float64, and with torch's own operators in the same type; the first argument has that type."""
    wide = [argument.double() for argument in arguments]
    weight = torch.randn_like(plain(*wide))
    exact = computed(plain, wide, weight)
    with torch.autocast(weight.device.type, dtype, enabled=dtype is not torch.float32):
        theirs = computed(plain, arguments, weight)
    name, ours, their, is_exact = worst(computed(kernels, arguments, weight), theirs, exact, str(dtype).split(".")[1])
    assert is_exact, (name, ours, their)


SIZES = {"cuda": {32: 96, 64: 48, 512: 8}, "cpu": {8: 12}}  # voxels per axis by channels
TYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture
def exact_products():
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stride, transposed", [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_convolution_at_published_sizes(device, exact_products, dtype, stride, transposed, k):
    convolution = F.conv_transpose3d if transposed else F.conv3d
    for channels, size in SIZES[device.type].items():
        size = size // 2 if transposed else size
        x = torch.randn(2, channels, size, size - 1, size + 1, device=device).to(dtype)
        weight, bias = torch.randn(channels, 1, k, k, k, device=device), torch.randn(channels, device=device)
        assert_as_accurate(
            lambda x, w, b: depthwise_conv3d(x, w, b, stride, transposed),
            lambda x, w, b: convolution(x, w, b, stride=stride, padding=k // 2, groups=x.shape[1]),  # noqa: B023
            [x, weight, bias],
            dtype,
        )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ratio", [2, 8])
def test_norm_and_products_at_published_sizes(device, exact_products, dtype, ratio):
    def plain(y, gamma, beta, w2, b2, w3, b3):
        h = F.group_norm(y, y.shape[1], gamma, beta, 1e-5)
        h = F.gelu(F.conv3d(h, w2[:, :, None, None, None], b2))
        return F.conv3d(h, w3[:, :, None, None, None], b3)

    for channels, size in SIZES[device.type].items():
        hidden = ratio * channels
        y = (3 + torch.randn(2, channels, size, size - 1, size + 1, device=device)).to(dtype)
        shapes = [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
        parameters = [torch.randn(shape, device=device) / shape[-1] ** 0.5 for shape in shapes]
        assert_as_accurate(lambda *a: norm_mlp(*a, None, 1e-5)[0], plain, [y, *parameters], dtype)


@needs_triton
@pytest.mark.parametrize("kind", [MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock])
def test_a_block_of_the_first_level_runs_at_the_published_patch(gpu, kind):
    """2 x 32 x 128^3: the offsets of the largest tensors; against torch's own operators, all in float16."""
    channels, outputs, size = {MedNeXtBlock: (32, 32, 128), MedNeXtDownBlock: (32, 64, 128)}.get(kind, (64, 32, 64))
    torch.manual_seed(0)
    block = kind(3, channels, outputs, 2, 3).to(gpu)
    x = torch.randn(2, channels, size, size, size, device=gpu, dtype=torch.float16)
    found = []
    for backend in ("plain", "triton"):
        with using_backend(backend), torch.autocast("cuda", torch.float16):
            found.append(computed(block, [x], torch.ones((), device=gpu).expand_as(block(x))))
    for name, expected in found[0].items():
        difference = (found[1][name].float() - expected.float()).abs().amax()
        assert difference <= 0.02 * expected.float().abs().amax(), name
