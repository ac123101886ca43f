"""The kernels as operators ``torch.ops.mednext.*``, so that autograd, ``torch.compile``, DDP and checkpointing work.

The tensors alone decide how: kernels for CUDA tensors, and under Triton's interpreter for CPU tensors; torch operations
(``eager``) for the rest: CPU tensors, float64, and products of voxels of more than ``MAX_ROW``
bytes, which are few and whose matrices are large. The gradient of a gradient is not offered.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, ExitStack

import torch
from torch.library import custom_op

from . import eager
from .block import DTYPES

__all__ = ["depthwise_conv3d", "interpreted", "norm_mlp"]

MAX_ROW = 512  # bytes of a voxel's channels, 256 in half precision: what fits the shared memory of every recent GPU

if importlib.util.find_spec("triton") is not None:
    from . import depthwise, pointwise, statistics
    from .common import INTERPRETED

    interpreted = INTERPRETED.value
    installed = True
else:
    interpreted = installed = False


def _on_kernels(x: torch.Tensor) -> bool:
    return installed and x.dtype in DTYPES and x.numel() > 0 and (x.is_cuda or interpreted)


def _own_device_and_types(x: torch.Tensor) -> AbstractContextManager:
    """Launch on the tensor's GPU, and keep autocast out of what an operator computes."""
    stack = ExitStack()
    if x.is_cuda:
        stack.enter_context(torch.cuda.device(x.device))
    stack.enter_context(torch.autocast(x.device.type, enabled=False))
    return stack


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _empty(x: torch.Tensor, channels: int, size) -> torch.Tensor:
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


# --- depthwise convolution -------------------------------------------------------------------------------------------


def _output_size(x: torch.Tensor, stride: int, transposed: bool) -> list[int]:
    return [(size - 1) * stride + 1 if transposed else (size - 1) // stride + 1 for size in x.shape[2:]]


@custom_op(
    "mednext::depthwise_conv3d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int stride, bool transposed) -> Tensor",
)
def depthwise_conv3d(x, weight, bias, stride, transposed):
    """
    Depthwise 3D convolution with padding K // 2, plain or transposed.

    Args:
        x: (N, C, *spatial); any memory format, the output is channels-last.
        weight: (C, 1, K, K, K), K odd.
        bias: (C), or ``None``.
        stride: 1 or 2.
        transposed: whether it is transposed: n voxels become (n - 1) * stride + 1, otherwise ceil(n / stride).
    """
    y = _empty(x, x.shape[1], _output_size(x, stride, transposed))
    implementation = depthwise.depthwise if _on_kernels(x) else eager.depthwise
    with _own_device_and_types(x):
        return implementation(_channels_last(x), weight, bias, stride, transposed, y)


@depthwise_conv3d.register_fake
def _(x, weight, bias, stride, transposed):
    return _empty(x, x.shape[1], _output_size(x, stride, transposed))


@custom_op(
    "mednext::depthwise_conv3d_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, int stride, bool transposed) -> (Tensor, Tensor)",
)
def depthwise_conv3d_backward(grad, x, weight, stride, transposed):
    """Return the gradients of ``x`` and ``weight``."""
    grad, x = _channels_last(grad), _channels_last(x)
    with _own_device_and_types(x):
        if not _on_kernels(x):
            return eager.depthwise_gradients(grad, x, weight, stride, transposed)
        k = weight.shape[-1]
        if transposed:
            grad_x = depthwise.depthwise(grad, weight, None, stride, False, torch.empty_like(x))
            grad_weight = depthwise.depthwise_weight(x, grad, k, stride)
        else:
            grad_x = depthwise.depthwise(grad, weight, None, stride, True, torch.empty_like(x))
            grad_weight = depthwise.depthwise_weight(grad, x, k, stride)
        return grad_x, grad_weight.to(weight.dtype)


@depthwise_conv3d_backward.register_fake
def _(grad, x, weight, stride, transposed):
    return _empty(x, x.shape[1], x.shape[2:]), torch.empty_like(weight)


def _save_depthwise(ctx, inputs, output):
    x, weight, bias, ctx.stride, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _depthwise_backward(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = depthwise_conv3d_backward(grad, x, weight, ctx.stride, ctx.transposed)
    grad_bias = None if ctx.bias_dtype is None else _sum_of_voxels(grad, ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None


def _sum_of_voxels(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return grad.sum((0, 2, 3, 4), dtype=torch.promote_types(grad.dtype, torch.float32)).to(dtype)


depthwise_conv3d.register_autograd(_depthwise_backward, setup_context=_save_depthwise)


# --- norm, expansion, GELU, compression, residual --------------------------------------------------------------------


def _folded(gamma, beta, w2, b2, w3, dtype):
    """Return w2 (C, E) and b2 (E) with the norm's weight and bias multiplied in, and w3 (E, O), for the kernels."""
    accurate = torch.promote_types(dtype, torch.float32)
    gamma, beta, w2, b2 = (item.to(accurate) for item in (gamma, beta, w2, b2))
    return (w2 * gamma).t().to(dtype).contiguous(), b2 + (w2 * beta).sum(1), w3.t().to(dtype).contiguous()


def _pointwise(y: torch.Tensor, w3: torch.Tensor):
    """Return the module that holds the implementation for ``y`` and ``w3`` (O, E)."""
    fits = max(y.shape[1], w3.shape[0]) * y.element_size() <= MAX_ROW
    return pointwise if fits and _on_kernels(y) else eager


@custom_op(
    "mednext::norm_mlp",
    mutates_args=(),
    schema="(Tensor y, Tensor gamma, Tensor beta, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor? residual, "
    "float eps) -> (Tensor, Tensor, Tensor)",
)
def norm_mlp(y, gamma, beta, w2, b2, w3, b3, residual, eps):
    """
    Instance norm, expansion, GELU, compression and residual in one operator, which never stores the expanded tensor.

    Args:
        y: (N, C, *spatial); any memory format, the output is channels-last.
        gamma: weight of the norm (C).
        beta: bias of the norm (C).
        w2: weight of the expansion (E, C).
        b2: bias of the expansion (E).
        w3: weight of the compression (O, E).
        b3: bias of the compression (O).
        residual: added to the result, (N, O, *spatial), or ``None``.
        eps: added to the variance.

    Returns:
        the result (N, O, *spatial), and for backward mean and 1 / standard deviation, each (N, C).
    """
    y = _channels_last(y)
    residual = None if residual is None else _channels_last(residual.to(y.dtype))
    with _own_device_and_types(y):
        mean, rstd = (statistics if _on_kernels(y) else eager).instance_statistics(y, eps)
        out = _empty(y, w3.shape[0], y.shape[2:])
        _pointwise(y, w3).mlp(
            y, mean, rstd, *_folded(gamma, beta, w2, b2, w3, y.dtype), b3.to(mean.dtype), residual, out
        )
        return out, mean, rstd


@norm_mlp.register_fake
def _(y, gamma, beta, w2, b2, w3, b3, residual, eps):
    mean, rstd = (y.new_empty(y.shape[:2], dtype=torch.promote_types(y.dtype, torch.float32)) for _ in range(2))
    return _empty(y, w3.shape[0], y.shape[2:]), mean, rstd


@custom_op(
    "mednext::norm_mlp_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor y, Tensor mean, Tensor rstd, Tensor gamma, Tensor beta, Tensor w2, Tensor b2, "
    "Tensor w3) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def norm_mlp_backward(grad, y, mean, rstd, gamma, beta, w2, b2, w3):
    """Return the gradients of ``y``, ``gamma``, ``beta``, ``w2``, ``b2`` and ``w3``."""
    y, grad = _channels_last(y), _channels_last(grad.to(y.dtype))
    voxels = y.shape[2:].numel()
    with _own_device_and_types(y):
        implementation = _pointwise(y, w3)
        tensors = (y, grad, mean, rstd, *_folded(gamma, beta, w2, b2, w3, y.dtype))
        sum_z, sum_1, sum_g = implementation.mlp_sums(*tensors)
        used = tensors[4].t().to(mean.dtype)  # w2 as rounded for the products: the averages are of their results
        average_1, average_z = sum_1 @ used / voxels, (sum_z * used).sum(1) / voxels
        grad_y = implementation.mlp_input_gradient(*tensors, average_1, average_z, torch.empty_like(y))
        sum_z, sum_1, sum_g = sum_z.sum(0), sum_1.sum(0), sum_g.sum(0)
        matrix = w2.to(mean.dtype)
        grad_w2 = sum_z * gamma.to(mean.dtype) + sum_1[:, None] * beta.to(mean.dtype)
        gradients = ((sum_z * matrix).sum(0), sum_1 @ matrix, grad_w2, sum_1, sum_g.t())
        parameters = (gamma, beta, w2, b2, w3)
        return grad_y, *(g.to(p.dtype).contiguous() for g, p in zip(gradients, parameters))


@norm_mlp_backward.register_fake
def _(grad, y, mean, rstd, gamma, beta, w2, b2, w3):
    return _empty(y, y.shape[1], y.shape[2:]), *(torch.empty_like(p) for p in (gamma, beta, w2, b2, w3))


def _save_norm_mlp(ctx, inputs, output):
    y, gamma, beta, w2, b2, w3, b3, residual, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(y, mean, rstd, gamma, beta, w2, b2, w3)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.b3_dtype, ctx.residual_dtype = b3.dtype, None if residual is None else residual.dtype


def _norm_mlp_backward(ctx, grad, _grad_mean, _grad_rstd):
    gradients = norm_mlp_backward(grad, *ctx.saved_tensors)
    grad_residual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
    return *gradients, _sum_of_voxels(grad, ctx.b3_dtype), grad_residual, None


norm_mlp.register_autograd(_norm_mlp_backward, setup_context=_save_norm_mlp)
