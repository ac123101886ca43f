"""The Triton backend: its operators as PyTorch sees them, when it runs, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mednext_monai.networks import BACKENDS, MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, using_backend
from mednext_monai.networks.backends.triton import block as triton_block
from mednext_monai.networks.backends.triton import forward, operators
from mednext_monai.networks.backends.triton.operators import depthwise_conv3d, norm_mlp

if operators.installed:
    import triton
    from triton.backends.compiler import GPUTarget

needs_triton = pytest.mark.skipif(not operators.installed, reason="the package triton is not installed")
TESTED_TRITON = (3, 9)
is_old = operators.installed and tuple(int(part) for part in triton.__version__.split(".")[:2]) < TESTED_TRITON
needs_new_interpreter = pytest.mark.skipif(is_old, reason="older interpreters, 3.1 for one, cannot run the kernels")
needs_cpu = pytest.mark.skipif(operators.interpreted, reason="Triton's interpreter is on: CPU tensors are not refused")


@needs_triton
@needs_new_interpreter
def test_kernels_compute_the_formulas_under_the_interpreter():
    tests = Path(__file__).with_name("triton_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=tests.parents[3], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@needs_triton
@needs_cpu
@pytest.mark.slow
@pytest.mark.parametrize("capability, dtype", [(80, torch.float16), (90, torch.bfloat16), (90, torch.float32)])
def test_kernels_compile_for_nvidia_gpus(monkeypatch, tmp_path, capability, dtype):
    """Record what a training step of the outer levels launches, then compile it: machine code needs no GPU."""
    launches = {}

    def record(kernel, *args, grid, warmup, **kwargs):
        arguments = dict(zip(kernel.arg_names, args)) | kwargs
        numbers = [value for value in arguments.values() if not torch.is_tensor(value)]
        launches[(kernel.fn.__name__, *numbers)] = kernel, arguments

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "run", record)
    monkeypatch.setattr(operators, "_on_kernels", lambda x: True)
    monkeypatch.setattr(forward, "_check_device", lambda x: None)
    for kind, channels, outputs, kernel_size, size in (
        (MedNeXtBlock, 32, 32, 3, 16),
        (MedNeXtBlock, 64, 64, 5, 1),
        (MedNeXtDownBlock, 64, 128, 5, 16),
        (MedNeXtUpBlock, 256, 128, 5, 8),
    ):
        x = torch.zeros(2, channels, size, size, size, dtype=dtype, requires_grad=True)
        with using_backend("triton"), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            kind(3, channels, outputs, 4, kernel_size)(x).sum().backward()
    assert {name for name, *_ in launches} == {
        "_depthwise_kernel",
        "_weight_kernel",
        "_moments_kernel",
        "_merge_kernel",
        "_mlp_kernel",
        "_sums_kernel",
        "_input_gradient_kernel",
    }
    for kernel, arguments in launches.values():
        compiled = compile_kernel(kernel, arguments, capability)
        assert compiled.metadata.shared <= 99 * 1024, kernel.fn.__name__  # what every GPU from 8.0 on has


def compile_kernel(kernel, arguments: dict, capability: int):
    """Compile as a launch with these arguments would: pointers are aligned, sizes divisible by 16 are known to be."""
    signature, constants, attributes = {}, {}, {}
    types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):  # a launch takes 1 for a constant
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif torch.is_tensor(value):
            signature[parameter.name] = types[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if torch.is_tensor(value) or (signature[parameter.name] == "i32" and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


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
    monkeypatch.setattr(triton_block, "run", lambda block, x: calls.append(block) or x)
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
