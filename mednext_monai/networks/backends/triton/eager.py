"""The kernels' work in torch operations: for tensors that no kernel takes, and as their readable counterpart.

Arguments and results are those of the functions of the same name in ``depthwise``, ``statistics`` and ``pointwise``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["depthwise", "depthwise_gradients", "instance_statistics", "mlp", "mlp_input_gradient", "mlp_sums"]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(N, C, *spatial) as (N, V, C)."""
    return x.flatten(2).transpose(1, 2)


def _write(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target.copy_(rows.transpose(1, 2).reshape(target.shape))


def _accurate(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def depthwise(x, weight, bias, stride, transposed, y):
    convolution = F.conv_transpose3d if transposed else F.conv3d
    bias = None if bias is None else bias.to(x.dtype)
    padding = weight.shape[-1] // 2
    return y.copy_(convolution(x, weight.to(x.dtype), bias, stride=stride, padding=padding, groups=x.shape[1]))


def depthwise_gradients(grad, x, weight, stride, transposed):
    """Return the gradients of ``x`` and ``weight`` for that of the output."""
    padding = [weight.shape[-1] // 2] * 3
    gradients = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight.to(x.dtype),
        None,
        [stride] * 3,
        padding,
        [1] * 3,
        transposed,
        [0] * 3,
        x.shape[1],
        [True, True, False],
    )
    return gradients[0].contiguous(memory_format=torch.channels_last_3d), gradients[1].to(weight.dtype)


def instance_statistics(x, eps):
    variance, mean = torch.var_mean(_accurate(x).flatten(2), dim=2, correction=0)
    return mean, torch.rsqrt(variance + eps)


def _normalized(y, mean, rstd):
    return (_accurate(_rows(y)) - mean[:, None]) * rstd[:, None]


def mlp(y, mean, rstd, w2, b2, w3, b3, residual, out):
    h = F.gelu(_accurate(_normalized(y, mean, rstd).to(y.dtype) @ w2) + b2).to(y.dtype)
    rows = _accurate(h @ w3) + b3
    return _write(rows if residual is None else rows + _rows(residual), out)


def _recomputed(y, g, mean, rstd, w2, b2, w3):
    """Return z, g's rows, h and u of the docstring of ``pointwise``."""
    z, g = _normalized(y, mean, rstd).to(y.dtype), _rows(g)
    before = _accurate(z @ w2) + b2
    below = 0.5 * (1 + torch.erf(before * 0.5**0.5))
    slope = below + before * torch.exp(-0.5 * before * before) * (0.5 / torch.pi) ** 0.5
    return z, g, (before * below).to(y.dtype), (_accurate(g @ w3.t()) * slope).to(y.dtype)


def mlp_sums(y, g, mean, rstd, w2, b2, w3):
    z, g, h, u = (_accurate(item) for item in _recomputed(y, g, mean, rstd, w2, b2, w3))
    return u.transpose(1, 2) @ z, u.sum(1), h.transpose(1, 2) @ g


def mlp_input_gradient(y, g, mean, rstd, w2, b2, w3, average_1, average_z, gradient):
    rows = _accurate(_recomputed(y, g, mean, rstd, w2, b2, w3)[3] @ w2.t())
    rows = rows - average_1[:, None] - _normalized(y, mean, rstd) * average_z[:, None]
    return _write(rows * rstd[:, None], gradient)
