"""The Triton backend: its operators as PyTorch sees them, when it runs, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mednext_monai.networks import BACKENDS, MedNeXtBlock, using_backend
from mednext_monai.networks import triton as triton_package
from mednext_monai.networks.triton import depthwise_conv3d, norm_mlp, operators

needs_triton = pytest.mark.skipif(not operators.installed, reason="the package triton is not installed")
needs_cpu = pytest.mark.skipif(operators.interpreted, reason="Triton's interpreter is on: CPU tensors are not refused")


@needs_triton
def test_kernels_compute_the_formulas_under_the_interpreter():
    tests = Path(__file__).with_name("triton_interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=tests.parents[1], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def depthwise_arguments(**kwargs) -> tuple:
    torch.manual_seed(0)
    return torch.randn(2, 3, 3, 2, 4, **kwargs), torch.randn(3, 1, 3, 3, 3, **kwargs), torch.randn(3, **kwargs)


def norm_mlp_arguments(**kwargs) -> tuple:
    torch.manual_seed(0)
    shapes = [(2, 3, 1, 2, 3), (3,), (3,), (5, 3), (5,), (4, 5), (4,), (2, 4, 1, 2, 3)]
    return tuple(torch.randn(shape, **kwargs) for shape in shapes)


@needs_cpu
@pytest.mark.parametrize("stride, transposed", [(1, False), (2, False), (2, True)])
def test_depthwise_convolution_is_an_operator_with_exact_gradients(stride, transposed):
    arguments = depthwise_arguments(dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(depthwise_conv3d, (*arguments, stride, transposed))
    torch.library.opcheck(depthwise_conv3d, (*arguments[:2], None, stride, transposed))
    assert torch.autograd.gradcheck(
        lambda x, w, b: depthwise_conv3d(x, w, b, stride, transposed), arguments, fast_mode=True
    )


@needs_cpu
def test_norm_mlp_is_an_operator_with_exact_gradients():
    arguments = norm_mlp_arguments(dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(norm_mlp, (*arguments, 1e-5))
    torch.library.opcheck(norm_mlp, (*arguments[:-1], None, 1e-5))
    assert torch.autograd.gradcheck(lambda *a: norm_mlp(*a, 1e-5)[0], arguments, fast_mode=True)


def test_operators_keep_half_precision():
    x, weight, bias = depthwise_arguments()
    assert depthwise_conv3d(x.bfloat16(), weight, bias, 1, False).dtype == torch.bfloat16
    y, *rest = norm_mlp_arguments()
    out, mean, rstd = norm_mlp(y.bfloat16(), *rest, 1e-5)
    assert (out.dtype, mean.dtype, rstd.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_only_the_backend_triton_runs_it(monkeypatch):
    calls = []
    monkeypatch.setattr(triton_package, "block_forward", lambda block, x: calls.append(block) or x)
    block, x = MedNeXtBlock(3, 4, 4), torch.randn(1, 4, 4, 4, 4)
    for backend in BACKENDS:
        with using_backend(backend):
            block.eval()(x)
            block.train()(x)
        assert len(calls) == (2 if backend == "triton" else 0), backend


def test_export_and_tracing_keep_to_the_plain_modules():
    block, x = MedNeXtBlock(3, 4, 4).eval(), torch.randn(1, 4, 4, 4, 4)
    with using_backend("triton"):
        traced, scripted = torch.jit.trace(block, x, check_trace=False), torch.jit.script(block)
    with using_backend("plain"):
        for exported in (traced, scripted):
            torch.testing.assert_close(exported(x), block(x))
    assert "mednext::" not in str(traced.inlined_graph)


@needs_cpu
@pytest.mark.parametrize(
    "installed, message", [(True, "needs a CUDA device.*cpu.*TRITON_INTERPRET=1"), (False, "package")]
)
def test_without_what_it_needs_the_backend_says_so(monkeypatch, installed, message):
    monkeypatch.setattr(operators, "installed", installed)
    with using_backend("triton"), pytest.raises(RuntimeError, match=message):
        MedNeXtBlock(3, 4, 4)(torch.randn(1, 4, 4, 4, 4))
