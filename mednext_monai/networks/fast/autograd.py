"""A whole MedNeXt block as one autograd function on the CPU: exact gradients, half the memory.

The block computes, for every sample with depthwise output ``Y`` of V voxels (rows) and C channels (columns)::

    s = gamma / sqrt(variance + eps)         mean and variance of each column of Y
    P = (Y - mean) diag(s) W2' + beta W2' + b2
    out = GELU(P) W3' + b3 + residual

``P`` and ``GELU(P)`` have 2 to 8 times the channels. They are made for some thousand voxels at a time, so that they
stay in the cache, and never stored: the backward pass makes them again from ``Y``. Kept from forward to backward are
the input, ``Y``, its means and scales, and the parameters. With ``G`` the gradient of the output, the backward pass is

    Gp = GELU'(P) * (G W3)                   dW3 = G' GELU(P)      db3 = column sums of G
    M = Gp' (Y - mean)    m = column sums of Gp
    dW2 = M diag(s) + m beta'    db2 = m    dbeta = W2' m    ds = column sums of W2 * M    dgamma = ds / sigma
    dY = Gp W2 diag(s) - s * dbeta / V - (Y - mean) * ds * s / (sigma^2 V)

followed by the gradients of the depthwise convolution (``depthwise_training``) and of the residual. The gradient of the
depthwise bias is zero, because the norm takes away whatever constant it adds to a channel.

The first-order formulas are written out here. A backward pass that is itself to be differentiated goes through
PyTorch's own operators instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .depthwise_training import backward_data, backward_weight, convolve_slabs
from .memory import empty

__all__ = ["KINDS", "BlockParameters", "block_function"]

KINDS = ("same", "down", "up")  # stride 1, stride 2, transposed with stride 2
CHUNK_ELEMENTS = 1 << 18  # of the expanded tensor that exist at a time: three such buffers stay in the caches
CHANNELS_LAST = torch.channels_last_3d


class BlockParameters(NamedTuple):
    """The parameters of one block, in the order in which it applies them; the last two belong to ``res_conv``."""

    depthwise_weight: torch.Tensor
    depthwise_bias: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expansion_weight: torch.Tensor
    expansion_bias: torch.Tensor
    compression_weight: torch.Tensor
    compression_bias: torch.Tensor
    residual_weight: torch.Tensor | None
    residual_bias: torch.Tensor | None


def block_function(
    x: torch.Tensor, parameters: BlockParameters, kind: str, use_residual: bool, eps: float
) -> torch.Tensor:
    """
    Compute a MedNeXt block with group norm, differentiable in the input and in every parameter.

    Args:
        x: ``(B, C, D, H, W)`` on the CPU, float32 or float64.
        parameters: those of the block, shaped as its modules hold them.
        kind: one of ``KINDS``.
        use_residual: whether the input is added: as it is for ``"same"``, through ``res_conv`` otherwise.
        eps: added to the variance.

    Returns:
        The block's output in channels-last storage.
    """
    x = x.contiguous(memory_format=CHANNELS_LAST)
    return _Block.apply(x, *parameters, kind, use_residual, eps)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *arguments):
        parameters, (kind, use_residual, eps) = BlockParameters(*arguments[:-3]), arguments[-3:]
        y, means, scales = _depthwise(x, parameters, kind, eps)
        out = _pointwise(x, y, means, scales, parameters, kind, use_residual)
        ctx.save_for_backward(x, y, means, scales, *parameters)
        ctx.kind, ctx.use_residual, ctx.eps = kind, use_residual, eps
        return out

    @staticmethod
    def backward(ctx, grad):
        x, y, means, scales, *parameters = ctx.saved_tensors
        parameters = BlockParameters(*parameters)
        needed = ctx.needs_input_grad[:-3]
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # create_graph=True: this pass is to be differentiated
                out = _plain(x, parameters, ctx.kind, ctx.use_residual, ctx.eps)
                gradients = _differentiable_gradients(out, grad, (x, *parameters), needed)
            else:
                grad = grad.contiguous(memory_format=CHANNELS_LAST)
                gradients = _backward(grad, x, y, means, scales, parameters, ctx.kind, ctx.use_residual, needed)
        return (*gradients, None, None, None)


# --- forward ---------------------------------------------------------------------------------------------------------


def _depthwise(x, parameters, kind, eps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depthwise convolution and, ``(B, C)`` each, its output's means and 1/sigma."""
    weight, bias = parameters.depthwise_weight, parameters.depthwise_bias
    if kind == "up":
        y = backward_data(x, weight, torch.Size(2 * n - 1 for n in x.shape[2:]))
    elif kind == "down":
        y = torch.conv3d(x, weight, bias, 2, weight.shape[2] // 2, groups=x.shape[1])
        y = y.contiguous(memory_format=CHANNELS_LAST)
    else:
        y = _empty_like(x)
    means, scales = (x.new_empty(y.shape[:2]) for _ in range(2))
    for i in range(x.shape[0]):
        moments = _Moments(x.shape[1], x.dtype)
        if kind == "same":
            for planes, slab in convolve_slabs(x[i : i + 1], weight, bias):
                moments.add(_rows(slab[0]))
                y[i, :, planes] = slab[0]
        else:
            if kind == "up":
                y[i] += bias.view(-1, 1, 1, 1)
            moments.add(_rows(y[i]))
        means[i], scales[i] = moments.mean_and_scale(eps)
    return y, means, scales


class _Moments:
    """
    Mean and variance of every column, from the means and squared deviations of chunks (Chan et al., 1983).

    ``pointwise.ChannelStatistics`` is faster, but torch adds up its rows one by one, which costs gradients a digit.
    """

    def __init__(self, columns: int, dtype: torch.dtype) -> None:
        self.centred = empty((max(1, CHUNK_ELEMENTS // columns), columns), dtype)
        self.counts: list[int] = []
        self.means: list[torch.Tensor] = []
        self.squares: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        for _, chunk in _chunks(rows, rows.shape[1]):
            mean = chunk.mean(0)
            centred = torch.sub(chunk, mean, out=self.centred[: len(chunk)])
            self.counts.append(len(chunk))
            self.means.append(mean)
            self.squares.append(torch.mul(centred, centred, out=centred).sum(0))

    def mean_and_scale(self, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        means, squares = torch.stack(self.means), torch.stack(self.squares)
        weights = torch.tensor(self.counts, dtype=means.dtype, device=means.device) / sum(self.counts)
        mean = weights @ means
        variance = squares.sum(0) / sum(self.counts) + weights @ (means - mean).square_()
        return mean, torch.rsqrt(variance + eps)


def _pointwise(x, y, means, scales, parameters, kind, use_residual) -> torch.Tensor:
    """Everything after the depthwise convolution."""
    channels = parameters.compression_weight.shape[0]
    size = [2 * n for n in x.shape[2:]] if kind == "up" else y.shape[2:]
    out = empty((x.shape[0], *size, channels), x.dtype)
    bias = parameters.compression_bias
    if parameters.residual_bias is not None:
        bias = bias + parameters.residual_bias
    inner = empty((y[0, 0].numel(), channels), x.dtype) if kind == "up" else None
    for i in range(x.shape[0]):
        target, base = inner if kind == "up" else out[i].view(-1, channels), None
        if use_residual and kind != "up":
            base = _rows(x[i]) if kind == "same" else _rows(_even(x[i])) @ _matrix(parameters.residual_weight).t()
        _expand_compress(_rows(y[i]), means[i], scales[i], parameters, base, bias, target)
        if kind == "up":
            _pad(target.view(*y.shape[2:], channels), out[i])
            if use_residual:
                residual = _rows(x[i]) @ _matrix(parameters.residual_weight)
                out[i, 1::2, 1::2, 1::2] += residual.view(*x.shape[2:], channels)
    return out.permute(0, 4, 1, 2, 3)


def _pad(inner: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``inner`` into ``out``, both ``(D, H, W, C)``, after one plane of zeros on every axis."""
    out[0] = 0
    out[:, 0] = 0
    out[:, :, 0] = 0
    out[1:, 1:, 1:] = inner


def _expand_compress(rows, mean, scale, parameters, base, bias, out) -> None:
    """Norm, expansion, GELU and compression of the rows, added to ``base`` (or nothing) and ``bias``, into ``out``."""
    expansion, offset = _folded_expansion(parameters, scale)
    compression = _matrix(parameters.compression_weight)
    buffers = _chunk_buffers(rows, expansion.shape[0], expansion.shape[1], expansion.shape[0])
    for part, chunk in _chunks(rows, expansion.shape[0]):
        centred, hidden = (buffer[: len(chunk)] for buffer in buffers)
        torch.sub(chunk, mean, out=centred)
        torch.addmm(offset, centred, expansion.t(), out=hidden)
        torch.ops.aten.gelu.out(hidden, out=hidden)
        if base is None:
            out[part] = bias
        else:
            torch.add(base[part], bias, out=out[part])
        out[part].addmm_(hidden, compression.t())


def _folded_expansion(parameters: BlockParameters, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the expansion with the norm in them, for rows from which the mean was taken."""
    weight = _matrix(parameters.expansion_weight)
    offset = torch.addmv(parameters.expansion_bias, weight, parameters.norm_bias)
    return weight * (parameters.norm_weight * scale), offset


# --- backward --------------------------------------------------------------------------------------------------------


def _backward(grad, x, y, means, scales, parameters, kind, use_residual, needed) -> list[torch.Tensor | None]:
    """Gradients of the input and of each parameter, where needed."""
    weight = parameters.depthwise_weight
    inner = grad if kind != "up" else _empty_like(grad[:, :, 1:, 1:, 1:]).copy_(grad[:, :, 1:, 1:, 1:])
    grad_y = _empty_like(y)
    sums = [torch.zeros_like(parameter) for parameter in parameters[2:8]]
    for i in range(x.shape[0]):
        rows, grad_rows = _rows(y[i]), _rows(grad_y[i])
        sample = _backward_rows(_rows(inner[i]), rows, means[i], scales[i], parameters, grad_rows, needed)
        for total, part in zip(sums, sample):
            total += part.view_as(total)
    gradients = [None, None, torch.zeros_like(parameters.depthwise_bias), *sums, None, None]
    if needed[1]:
        volumes = (grad_y, x) if kind == "up" else (x, grad_y)
        gradients[1] = backward_weight(*volumes, weight.shape[2], stride=1 if kind == "same" else 2)
    if needed[0]:
        gradients[0] = _backward_depthwise(grad_y, x, weight, kind, grad if use_residual and kind == "same" else None)
    if use_residual and kind != "same":
        gradients[9] = _backward_residual(inner, x, gradients[0], parameters.residual_weight, kind)
        gradients[10] = gradients[8]
    return [gradient if need else None for gradient, need in zip(gradients, needed)]


def _backward_depthwise(grad_y, x, weight, kind, residual: torch.Tensor | None) -> torch.Tensor:
    """Gradient of the input through the depthwise convolution, plus ``residual``."""
    if kind == "up":
        grad_x = torch.conv3d(grad_y, weight, None, 2, weight.shape[2] // 2, groups=x.shape[1])
        return grad_x.contiguous(memory_format=CHANNELS_LAST)
    if kind == "down":
        return backward_data(grad_y, weight, x.shape[2:])
    grad_x, flipped = _empty_like(x), weight.flip(2, 3, 4)
    for i in range(x.shape[0]):
        for planes, slab in convolve_slabs(grad_y[i : i + 1], flipped, None):
            target = grad_x[i, :, planes]
            if residual is None:
                target.copy_(slab[0])
            else:
                torch.add(slab[0], residual[i, :, planes], out=target)
    return grad_x


def _backward_rows(grad, rows, mean, scale, parameters, grad_rows, needed) -> tuple[torch.Tensor, ...]:
    """
    Backward pass of ``_expand_compress``, the norm's statistics included, for one sample.

    Writes the gradient of ``rows`` into ``grad_rows`` and returns those of the norm's, the expansion's and the
    compression's weight and bias.
    """
    expansion, offset = _folded_expansion(parameters, scale)
    compression = _matrix(parameters.compression_weight)
    moment, moment_1 = torch.zeros_like(expansion), torch.zeros_like(offset)  # M and m of the module's docstring
    grad_compression, grad_bias = torch.zeros_like(compression), grad.new_zeros(grad.shape[1])
    width, columns = expansion.shape
    total = grad.new_zeros(columns)  # of grad_rows: what is taken off below is then exact to the sum's rounding
    buffers = _chunk_buffers(rows, width, columns, width, width, width)
    for part, chunk in _chunks(rows, width):
        centred, hidden, grad_hidden, active = (buffer[: len(chunk)] for buffer in buffers)
        grad_bias += grad[part].sum(0)
        torch.sub(chunk, mean, out=centred)
        torch.addmm(offset, centred, expansion.t(), out=hidden)
        if needed[7]:
            torch.ops.aten.gelu.out(hidden, out=active)
            grad_compression.addmm_(grad[part].t(), active)
        if any(needed[:7]):
            torch.mm(grad[part], compression, out=grad_hidden)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
            moment.addmm_(grad_hidden.t(), centred)
            moment_1 += grad_hidden.sum(0)
            total += torch.mm(grad_hidden, expansion, out=grad_rows[part]).sum(0)
    weight = _matrix(parameters.expansion_weight)
    folded = parameters.norm_weight * scale
    grad_norm_bias = weight.t() @ moment_1
    grad_folded = (weight * moment).sum(0)
    if any(needed[:2]):
        constant = -total / len(rows)
        slope = -grad_folded * folded * scale.square() / len(rows)
        (buffer,) = _chunk_buffers(rows, columns, columns)
        for part, chunk in _chunks(rows, columns):
            centred = torch.sub(chunk, mean, out=buffer[: len(chunk)])
            grad_rows[part].addcmul_(centred, slope).add_(constant)
    grad_expansion = torch.addr(moment * folded, moment_1, parameters.norm_bias)
    return grad_folded * scale, grad_norm_bias, grad_expansion, moment_1, grad_compression, grad_bias


def _backward_residual(grad, x, grad_x, weight, kind) -> torch.Tensor:
    """Add the gradient through ``res_conv`` to ``grad_x``, unless that is None; return the gradient of its weight."""
    matrix = _matrix(weight)
    total = torch.zeros_like(matrix)
    for i in range(x.shape[0]):
        source, target = (x[i], _even(grad[i])) if kind == "up" else (_even(x[i]), grad[i])
        rows, grad_rows = _rows(source), _rows(target)
        total += rows.t() @ grad_rows if kind == "up" else grad_rows.t() @ rows
        if grad_x is not None:
            part = grad_rows @ (matrix.t() if kind == "up" else matrix)
            target = grad_x[i] if kind == "up" else _even(grad_x[i])
            target += part.view(*source.shape[1:], x.shape[1]).permute(3, 0, 1, 2)
    return total.view_as(weight)


# --- the same with PyTorch's operators, for gradients of gradients ---------------------------------------------------


def _plain(x, parameters, kind, use_residual, eps) -> torch.Tensor:
    weight = parameters.depthwise_weight
    conv, stride = {"same": (F.conv3d, 1), "down": (F.conv3d, 2), "up": (F.conv_transpose3d, 2)}[kind]
    channels = x.shape[1]
    y = conv(x, weight, parameters.depthwise_bias, stride=stride, padding=weight.shape[2] // 2, groups=channels)
    y = torch.group_norm(y, channels, parameters.norm_weight, parameters.norm_bias, eps)
    y = F.gelu(F.conv3d(y, parameters.expansion_weight, parameters.expansion_bias))
    y = F.conv3d(y, parameters.compression_weight, parameters.compression_bias)
    if use_residual:
        y = y + (x if kind == "same" else conv(x, parameters.residual_weight, parameters.residual_bias, stride=2))
    return F.pad(y, [1, 0] * 3) if kind == "up" else y


def _differentiable_gradients(out, grad, inputs, needed) -> list[torch.Tensor | None]:
    wanted = [tensor for tensor, need in zip(inputs, needed) if need]
    gradients = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(gradients) if need else None for need in needed]


# --- views and memory ------------------------------------------------------------------------------------------------


def _rows(sample: torch.Tensor) -> torch.Tensor:
    """Return a sample ``(C, D, H, W)`` as rows ``(D * H * W, C)``; no copy for dense channels-last storage."""
    return sample.permute(1, 2, 3, 0).reshape(-1, sample.shape[0])


def _even(volume: torch.Tensor) -> torch.Tensor:
    """Return the voxels with even indices on every spatial axis, which a 1x1 convolution with stride 2 reads."""
    return volume[..., ::2, ::2, ::2]


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight of a 1x1 convolution without its spatial axes."""
    return weight.flatten(1)


def _chunks(rows: torch.Tensor, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the rows, and the rows in them, of which ``CHUNK_ELEMENTS / width`` fit into a buffer."""
    length = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, len(rows), length):
        part = slice(start, start + length)
        yield part, rows[part]


def _chunk_buffers(rows: torch.Tensor, width: int, *columns: int) -> list[torch.Tensor]:
    """Return uninitialised matrices with the rows of one chunk and the given numbers of columns."""
    length = min(len(rows), max(1, CHUNK_ELEMENTS // width))
    return [empty((length, count), rows.dtype) for count in columns]


def _empty_like(volume: torch.Tensor) -> torch.Tensor:
    """Return an uninitialised channels-last tensor of the shape of ``volume``, ``(B, C, D, H, W)``."""
    batch, channels, *size = volume.shape
    return empty((batch, *size, channels), volume.dtype).permute(0, 4, 1, 2, 3)
