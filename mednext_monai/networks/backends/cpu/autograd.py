"""A whole MedNeXt block as one autograd function on the CPU: exact gradients, half the memory.

The block computes, for every sample with depthwise output ``Y`` of V voxels (rows) and C channels (columns)::

    s = gamma / sqrt(variance + eps)         mean and variance of each column of Y
    P = Y diag(s) W2' + (beta - mean s) W2' + b2
    out = GELU(P) W3' + b3 + residual

``P`` and ``GELU(P)`` have 2 to 8 times the channels. They are made for some thousand voxels at a time, so that they
stay in the cache, and never stored: the backward pass makes them again from ``Y``. Kept from forward to backward are
the input, ``Y``, its means and scales, and the parameters. With ``G`` the gradient of the output, the backward pass is

    Gp = GELU'(P) * (G W3)                   dW3 = G' GELU(P)      db3 = column sums of G
    m = column sums of Gp    M = Gp' (Y - mean) = Gp' Y - m mean'
    dW2 = M diag(s) + m beta'    db2 = m    dbeta = W2' m    ds = column sums of W2 * M    dgamma = ds / sigma
    dY = Gp W2 diag(s) - s * dbeta / V - (Y - mean) * ds * s / (sigma^2 V)

followed by the gradients of the depthwise convolution (``depthwise``) and of the residual. The norm takes away
whatever constant is added to a channel. The gradient of the depthwise bias is therefore zero, and ``Y`` is stored
without it but less the mean of its first slab, so that the mean, and what its products cost in digits, are small.

Under autocast with bfloat16 the volumes and the matrices are bfloat16. Sums of products, the statistics and what is
computed from them, the gradients of the parameters and the depthwise backward pass are float32.

The first-order formulas are written out here. A backward pass that is itself to be differentiated goes through
PyTorch's own operators instead.

Volumes are ``(B, D, H, W, C)``, or ``(D, H, W, C)`` for one sample; only the function's input and output are
channels-first, in channels-last storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ....memory import empty
from .common import BlockParameters
from .depthwise import backward_data, backward_weight, depthwise_slabs, slab_ranges
from .pointwise import (
    ChannelStatistics,
    PointwiseWeights,
    PreciseChannelStatistics,
    as_rows,
    channel_means,
    chunks,
    expand_compress,
    fold_norm,
)
from .products import products_for

__all__ = ["block_function"]

Gradients = list["torch.Tensor | None"]


class _Kind(NamedTuple):
    """What the block is, apart from its parameters; ``stride`` and ``transposed`` are of the depthwise convolution."""

    stride: int
    transposed: bool
    use_residual: bool
    eps: float
    is_flat: bool  # an image, as a volume of one voxel, one tap and no border along the middle axis

    def inside(self, step: int = 1) -> tuple[slice, slice, slice]:
        """Return where a transposed block puts values, after its border, or every ``step``-th of them."""
        values = slice(1, None, step)
        return values, slice(None) if self.is_flat else values, values


def block_function(
    x: torch.Tensor,
    parameters: BlockParameters,
    stride: int,
    transposed: bool,
    use_residual: bool,
    eps: float,
    is_flat: bool = False,
) -> torch.Tensor:
    """
    Compute a MedNeXt block with group norm, differentiable in the input and in every parameter.

    Args:
        x: ``(B, C, D, H, W)`` on the CPU, of the parameters' type or bfloat16.
        parameters: those of the block, shaped as its modules hold them, float32 or float64.
        stride: of the depthwise convolution, 1 or 2.
        transposed: whether it is transposed; then the stride is 2.
        use_residual: whether the input is added: as it is for stride 1, through ``res_conv`` otherwise.
        eps: added to the variance.
        is_flat: whether ``x`` and the kernels are of a 2D block, lifted to ``(B, C, H, 1, W)``. Defaults to ``False``.

    Returns:
        the block's output in channels-last storage, of the type of ``x``.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return _Block.apply(x, *parameters, _Kind(stride, transposed, use_residual, eps, is_flat))


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *arguments):
        parameters, ctx.kind = BlockParameters(*arguments[:-1]), arguments[-1]
        volume = x.permute(0, 2, 3, 4, 1)
        with torch.autocast("cpu", enabled=False):
            y, means, scales = _depthwise(volume, parameters, ctx.kind)
            out = _pointwise(volume, y, means, scales, parameters, ctx.kind)
        ctx.save_for_backward(x, y, means, scales, *parameters)
        return out.permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx, grad):
        x, y, means, scales, *saved = ctx.saved_tensors
        parameters, needed = BlockParameters(*saved), ctx.needs_input_grad[:-1]
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # create_graph=True: this pass is to be differentiated
                dtype = parameters.depthwise_weight.dtype
                out = _plain(x.to(dtype), parameters, ctx.kind)
                gradients = _differentiable_gradients(out, grad.to(dtype), (x, *parameters), needed)
            else:
                grad = grad.contiguous(memory_format=torch.channels_last_3d)
                volumes = (volume.permute(0, 2, 3, 4, 1) for volume in (grad, x))
                gradients = _backward(*volumes, y, means, scales, parameters, ctx.kind, needed)
        return (*gradients, None)


# --- forward ---------------------------------------------------------------------------------------------------------


def _depthwise(
    x: torch.Tensor, parameters: BlockParameters, kind: _Kind
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the depthwise convolution less a constant per channel and, ``(B, C)`` each, its means and 1/sigma."""
    weight = parameters.depthwise_weight
    batch, *size, channels = x.shape
    size = [2 * n - 1 if kind.transposed else (n - 1) // kind.stride + 1 for n in size]
    y = empty((batch, *size, channels), x.dtype)
    means, scales = weight.new_empty(batch, channels), weight.new_empty(batch, channels)
    for i in range(batch):
        if kind.transposed:
            backward_data(x[i], weight, y[i])
        pivot, is_first = x.new_zeros(channels), True
        statistics = ChannelStatistics() if x.dtype == torch.bfloat16 else PreciseChannelStatistics(channels, x.dtype)
        slabs: Iterable[tuple[slice, torch.Tensor]]
        if kind.transposed:
            slabs = ((planes, y[i, planes]) for planes in slab_ranges(y[i].shape, y.dtype))
        else:
            slabs = depthwise_slabs(x[i], weight.to(x.dtype), None, _padding(weight), kind.stride)
        for planes, slab in slabs:
            if is_first:
                pivot, is_first = channel_means(as_rows(slab)).to(x.dtype), False
            torch.sub(slab, pivot, out=y[i, planes])
            statistics.add(as_rows(y[i, planes]))
        means[i], scales[i] = statistics.mean_and_scale(kind.eps)
    return y, means, scales


def _pointwise(x, y, means, scales, parameters: BlockParameters, kind: _Kind) -> torch.Tensor:
    """Return everything after the depthwise convolution."""
    channels = parameters.compression_weight.shape[0]
    size = list(y.shape[1:4])
    if kind.transposed:
        size = [n if kind.is_flat and axis == 1 else n + 1 for axis, n in enumerate(size)]
    out = empty((x.shape[0], *size, channels), x.dtype)
    inner = empty((y[0, ..., 0].numel(), channels), x.dtype) if kind.transposed else None
    products = products_for(x.dtype)
    for i in range(x.shape[0]):
        target = out[i].view(-1, channels) if inner is None else inner
        base = None
        if kind.use_residual and not kind.transposed:
            base = as_rows(x[i] if kind.stride == 1 else _even(x[i]))
            if kind.stride > 1:
                base = products.linear(base, _residual_matrix(parameters, x.dtype))
        expand_compress(as_rows(y[i]), fold_norm(parameters, scales[i], means[i]).to(x.dtype), target, base)
        if inner is not None:
            _pad(inner.view(*y.shape[1:4], channels), out[i], kind)
            if kind.use_residual:
                residual = products.linear(as_rows(x[i]), _residual_matrix(parameters, x.dtype).t().contiguous())
                out[(i, *kind.inside(2))] += residual.view(*x.shape[1:4], channels)
    return out


def _padding(weight: torch.Tensor) -> list[int]:
    return [size // 2 for size in weight.shape[2:]]


def _pad(inner: torch.Tensor, out: torch.Tensor, kind: _Kind) -> None:
    """Write ``inner`` into ``out``, both ``(D, H, W, C)``, after one plane of zeros on every axis with a border."""
    out[0] = 0
    if not kind.is_flat:
        out[:, 0] = 0
    out[:, :, 0] = 0
    out[kind.inside()] = inner


# --- backward --------------------------------------------------------------------------------------------------------


def _backward(grad, x, y, means, scales, parameters: BlockParameters, kind: _Kind, needed) -> Gradients:
    """Return the gradients of the input and of each parameter, where needed."""
    inner = grad
    if kind.transposed:
        values = grad[(slice(None), *kind.inside())]
        inner = empty(values.shape, grad.dtype).copy_(values)
    grad_y = empty(y.shape, y.dtype)
    sums = [torch.zeros_like(parameter) for parameter in parameters[2:8]]
    for i in range(x.shape[0]):
        weights = fold_norm(parameters, scales[i], means[i]).to(y.dtype)
        rows, grad_rows = as_rows(y[i]), as_rows(grad_y[i])
        sample = _backward_rows(as_rows(inner[i]), rows, means[i], scales[i], parameters, weights, grad_rows, needed)
        for total, part in zip(sums, sample):
            total += part.view_as(total)
    gradients: Gradients = [None, None, torch.zeros_like(parameters.depthwise_bias), *sums, None, None]
    if needed[1]:
        gradients[1] = grad_weight = torch.zeros_like(parameters.depthwise_weight)
        for source, target in zip(grad_y, x) if kind.transposed else zip(x, grad_y):
            backward_weight(source, target, kind.stride, grad_weight)
    grad_x = _backward_depthwise(grad_y, x, grad, parameters.depthwise_weight, kind) if needed[0] else None
    if kind.use_residual and kind.stride > 1:
        gradients[9] = _backward_residual(inner, x, grad_x, parameters, kind)
        gradients[10] = gradients[8]
    gradients[0] = None if grad_x is None else grad_x.permute(0, 4, 1, 2, 3)
    return [gradient if need else None for gradient, need in zip(gradients, needed)]


def _backward_depthwise(grad_y, x, grad, weight, kind: _Kind) -> torch.Tensor:
    """Return the gradient of the input through the depthwise convolution, for stride 1 with that of the residual."""
    grad_x = empty(x.shape, x.dtype)
    if kind.stride == 1:
        weight = weight.flip(2, 3, 4)
    if kind.stride == 1 or kind.transposed:
        weight = weight.to(x.dtype)
    for i in range(x.shape[0]):
        if kind.stride == 2 and not kind.transposed:
            backward_data(grad_y[i], weight, grad_x[i])
            continue
        for planes, slab in depthwise_slabs(grad_y[i], weight, None, _padding(weight), kind.stride):
            if kind.use_residual and kind.stride == 1:
                torch.add(slab, grad[i, planes], out=grad_x[i, planes])
            else:
                grad_x[i, planes] = slab
    return grad_x


def _backward_rows(
    grad, rows, mean, scale, parameters: BlockParameters, weights: PointwiseWeights, grad_rows, needed
) -> tuple[torch.Tensor, ...]:
    """
    Backward pass of ``expand_compress``, the norm's statistics included, for one sample.

    Writes the gradient of ``rows`` into ``grad_rows`` and returns those of the norm's, the expansion's and the
    compression's weight and bias.
    """
    products, dtype = products_for(rows.dtype), mean.dtype
    expand, compress_back = weights.expand, weights.compress.t().contiguous()
    expand_back = parameters.expansion_weight.flatten(1).t().contiguous().to(rows.dtype)  # W2'
    moment, moment_1 = expand.new_zeros(expand.shape, dtype=dtype), mean.new_zeros(len(expand))  # Gp' Y and m
    grad_compression, grad_bias = mean.new_zeros(weights.compress.shape), mean.new_zeros(grad.shape[1])
    total = torch.zeros_like(mean)  # of Gp W2: what is subtracted below is then exact to the sum's rounding
    for part, chunk in chunks(rows, len(expand)):
        grad_bias += grad[part].sum(0, dtype=dtype)
        hidden = products.linear(chunk, expand, weights.expand_bias)
        if needed[7]:
            grad_compression += products.outer(grad[part], torch.ops.aten.gelu(hidden))
        if any(needed[:7]):
            grad_hidden = products.linear(grad[part], compress_back)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
            moment += products.outer(grad_hidden, chunk)
            moment_1 += grad_hidden.sum(0, dtype=dtype)
            grad_chunk = products.linear(grad_hidden, expand_back)
            grad_rows[part] = grad_chunk
            total += grad_chunk.sum(0, dtype=dtype)
    moment -= torch.outer(moment_1, mean)
    weight = parameters.expansion_weight.flatten(1)
    folded = parameters.norm_weight * scale
    grad_norm_bias = weight.t() @ moment_1
    grad_folded = (weight * moment).sum(0)
    if any(needed[:2]):
        along = (expand_back.t().to(dtype) * moment).sum(0)  # ds, of the matrix as rounded
        slope = -along * folded * scale.square() / len(rows)
        _backward_norm(rows, folded, slope, -total * folded / len(rows) - slope * mean, grad_rows)
    grad_expansion = torch.addr(moment * folded, moment_1, parameters.norm_bias)
    return grad_folded * scale, grad_norm_bias, grad_expansion, moment_1, grad_compression, grad_bias


def _backward_norm(rows, factor, slope, constant, grad_rows) -> None:
    """
    Replace ``grad_rows``, the gradient of what the norm returns without its weight, by that of ``rows``.

    That is ``factor * grad_rows + slope * rows + constant``, computed in the type of the three, ``(C)`` each. A value
    of bfloat16 is rounded after that: adding small terms to the rounded one would change nothing.
    """
    for part, chunk in chunks(rows, rows.shape[1]):
        value = grad_rows[part].to(slope.dtype)  # of float32, the rows themselves
        value.mul_(factor).addcmul_(chunk.to(slope.dtype), slope).add_(constant)
        if value.dtype != grad_rows.dtype:
            grad_rows[part] = value


def _backward_residual(grad, x, grad_x, parameters: BlockParameters, kind: _Kind) -> torch.Tensor:
    """Add the gradient through ``res_conv`` to ``grad_x``, unless that is None; return the gradient of its weight."""
    matrix = _residual_matrix(parameters, x.dtype)  # (C', C), transposed (C, C')
    back = (matrix if kind.transposed else matrix.t()).contiguous()
    total = parameters.norm_weight.new_zeros(matrix.shape)
    products = products_for(x.dtype)
    for i in range(x.shape[0]):
        source, target = (x[i], _even(grad[i])) if kind.transposed else (_even(x[i]), grad[i])
        rows, grad_rows = as_rows(source), as_rows(target)
        total += products.outer(*((rows, grad_rows) if kind.transposed else (grad_rows, rows)))
        if grad_x is not None:
            target = grad_x[i] if kind.transposed else _even(grad_x[i])
            target += products.linear(grad_rows, back).view(source.shape)
    return total.view(*total.shape, 1, 1, 1)


def _even(volume: torch.Tensor) -> torch.Tensor:
    """Return the voxels ``(D, H, W, C)`` with even indices, which a 1x1 convolution with stride 2 reads."""
    return volume[::2, ::2, ::2]


def _residual_matrix(parameters: BlockParameters, dtype: torch.dtype) -> torch.Tensor:
    assert parameters.residual_weight is not None  # narrows the type
    return parameters.residual_weight.flatten(1).to(dtype)


# --- the same with PyTorch's operators, for gradients of gradients ---------------------------------------------------


def _plain(x: torch.Tensor, parameters: BlockParameters, kind: _Kind) -> torch.Tensor:
    weight, channels = parameters.depthwise_weight, x.shape[1]
    conv = F.conv_transpose3d if kind.transposed else F.conv3d
    y = conv(x, weight, parameters.depthwise_bias, stride=kind.stride, padding=_padding(weight), groups=channels)
    y = torch.group_norm(y, channels, parameters.norm_weight, parameters.norm_bias, kind.eps)
    y = F.gelu(F.conv3d(y, parameters.expansion_weight, parameters.expansion_bias))
    y = F.conv3d(y, parameters.compression_weight, parameters.compression_bias)
    if kind.use_residual and kind.stride == 1:
        y = y + x
    elif parameters.residual_weight is not None:
        y = y + conv(x, parameters.residual_weight, parameters.residual_bias, stride=kind.stride)
    border = [1, 0, 0 if kind.is_flat else 1, 0, 1, 0]
    return F.pad(y, border) if kind.transposed else y


def _differentiable_gradients(out, grad, inputs, needed) -> Gradients:
    wanted = [tensor for tensor, need in zip(inputs, needed) if need]
    gradients = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(gradients) if need else None for need in needed]
