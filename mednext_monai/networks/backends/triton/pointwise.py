"""Instance norm, expansion, GELU, compression and residual in one pass; the expanded tensor lives in registers only.

Rows of one sample: ``y`` (V, C) with mean and 1 / standard deviation per channel, ``z = (y - mean) * rstd``. The norm's
weight and bias are folded into the expansion, ``w2 = W2 diag(gamma)`` and ``b2 = B2 + W2 beta``:

    h = gelu(z w2^T + b2)        out = h w3^T + b3 [+ residual]

Backward recomputes h tile by tile. With g the gradient of out and u = (g w3) * gelu'(z w2^T + b2), the first kernel
sums u^T z, u^T 1 and h^T g per sample; from them follow the parameters' gradients and the two averages that an instance
norm's backward needs, so that the second kernel can write the gradient of ``y`` in one pass.
Tiles are rounded to the type of ``y`` before each product, as under autocast; sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import block, dot, precision, rounded

__all__ = ["mlp", "mlp_input_gradient", "mlp_sums"]

PROGRAMS = 512  # of the sums: enough to fill a GPU; fixed, so that sums do not depend on the device


@triton.jit
def _gelu(x):
    """Return the exact GELU, x times the normal distribution function, and that function."""
    below = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
    return x * below, below


@triton.jit
def _normalized(y, mean, rstd, sample, row, channel, mask, channels):
    """Load a tile of ``y`` and normalize it; 0 outside of the tensor."""
    value = tl.load(y + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    center = tl.load(mean + sample * channels + channel, mask=channel < channels, other=0.0)
    scale = tl.load(rstd + sample * channels + channel, mask=channel < channels, other=0.0)
    return tl.where(mask, (value - center[None, :]) * scale[None, :], 0.0)


@triton.jit
def _matrix(w, row, column, rows, columns):
    """Load the tile (row, column) of a row-major matrix of ``rows`` times ``columns``; 0 outside of it."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(w + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
def _mlp_kernel(
    y,
    mean,
    rstd,
    w2,
    b2,
    w3,
    b3,
    residual,
    out,  # w2 (C, E), w3 (E, O) of y's type; b2, b3 float32
    voxels,
    channels,
    expanded,
    outputs,
    HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    row = sample * voxels + voxel
    channel = tl.arange(0, BLOCK_C)
    mask = (voxel < voxels)[:, None] & (channel < channels)[None, :]
    z = rounded(_normalized(y, mean, rstd, sample, row, channel, mask, channels), y.dtype.element_ty)
    output = tl.arange(0, BLOCK_O)
    total = tl.zeros([BLOCK_V, BLOCK_O], tl.float32)
    for first in range(0, expanded, BLOCK_E):
        hidden = first + tl.arange(0, BLOCK_E)
        before = dot(z, _matrix(w2, channel, hidden, channels, expanded), PRECISION)
        before += tl.load(b2 + hidden, mask=hidden < expanded, other=0.0)[None, :]
        h, _ = _gelu(before)
        total += dot(rounded(h, y.dtype.element_ty), _matrix(w3, hidden, output, expanded, outputs), PRECISION)
    total += tl.load(b3 + output, mask=output < outputs, other=0.0)[None, :]
    offset = row[:, None] * outputs + output[None, :]
    mask = (voxel < voxels)[:, None] & (output < outputs)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offset, rounded(total, out.dtype.element_ty), mask=mask)


@triton.jit
def _recomputed(z, g, w2, b2, w3, PRECISION: tl.constexpr):
    """From tiles of all arguments, return one of the tensor after the GELU and one of the gradient before the GELU."""
    before = dot(z, w2, PRECISION) + b2[None, :]
    h, below = _gelu(before)
    slope = below + before * (0.3989422804014327 * tl.exp(-0.5 * before * before))
    gradient = dot(g, tl.trans(w3), PRECISION) * slope
    return rounded(h, z.dtype), rounded(gradient, z.dtype)


@triton.jit
def _sums_kernel(
    y,
    g,
    mean,
    rstd,
    w2,
    b2,
    w3,
    sum_z,
    sum_1,
    sum_g,  # sums (N, parts, E, C), (N, parts, E), (N, parts, E, O)
    voxels,
    channels,
    expanded,
    outputs,
    tiles,  # tiles per program
    PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    part, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    hidden = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    channel, output = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_O)
    w2_tile = _matrix(w2, channel, hidden, channels, expanded)
    w3_tile = _matrix(w3, hidden, output, expanded, outputs)
    b2_tile = tl.load(b2 + hidden, mask=hidden < expanded, other=0.0)
    total_z = tl.zeros([BLOCK_E, BLOCK_C], tl.float32)
    total_g = tl.zeros([BLOCK_E, BLOCK_O], tl.float32)
    total_1 = tl.zeros([BLOCK_E], tl.float32)
    for tile in range(part * tiles, (part + 1) * tiles):
        voxel = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        row = sample * voxels + voxel
        mask = (voxel < voxels)[:, None] & (channel < channels)[None, :]
        z = rounded(_normalized(y, mean, rstd, sample, row, channel, mask, channels), y.dtype.element_ty)
        mask = (voxel < voxels)[:, None] & (output < outputs)[None, :]
        gradient = tl.load(g + row[:, None] * outputs + output[None, :], mask=mask, other=0.0)
        h, u = _recomputed(z, gradient, w2_tile, b2_tile, w3_tile, PRECISION)
        total_1 += tl.sum(u.to(tl.float32), axis=0)
        total_z += dot(tl.trans(u), z, PRECISION)
        total_g += dot(tl.trans(h), gradient, PRECISION)
    target = (sample * tl.num_programs(1) + part) * expanded + hidden
    valid = hidden < expanded
    tl.store(sum_1 + target, total_1, mask=valid)
    mask = valid[:, None] & (channel < channels)[None, :]
    tl.store(sum_z + target[:, None] * channels + channel[None, :], total_z, mask=mask)
    mask = valid[:, None] & (output < outputs)[None, :]
    tl.store(sum_g + target[:, None] * outputs + output[None, :], total_g, mask=mask)


@triton.jit
def _input_gradient_kernel(
    y,
    g,
    mean,
    rstd,
    w2,
    b2,
    w3,
    average_1,
    average_z,
    gradient,  # averages over voxels (N, C) float32
    voxels,
    channels,
    expanded,
    outputs,
    PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    row = sample * voxels + voxel
    channel, output = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_O)
    inside = (voxel < voxels)[:, None] & (channel < channels)[None, :]
    exact = _normalized(y, mean, rstd, sample, row, channel, inside, channels)
    z = rounded(exact, y.dtype.element_ty)
    mask = (voxel < voxels)[:, None] & (output < outputs)[None, :]
    upstream = tl.load(g + row[:, None] * outputs + output[None, :], mask=mask, other=0.0)
    total = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    for first in range(0, expanded, BLOCK_E):
        hidden = first + tl.arange(0, BLOCK_E)
        w2_tile = _matrix(w2, channel, hidden, channels, expanded)
        w3_tile = _matrix(w3, hidden, output, expanded, outputs)
        b2_tile = tl.load(b2 + hidden, mask=hidden < expanded, other=0.0)
        _, u = _recomputed(z, upstream, w2_tile, b2_tile, w3_tile, PRECISION)
        total += dot(u, tl.trans(w2_tile), PRECISION)
    source = sample * channels + channel
    valid = channel < channels
    total -= tl.load(average_1 + source, mask=valid, other=0.0)[None, :]
    total -= exact * tl.load(average_z + source, mask=valid, other=0.0)[None, :]
    total *= tl.load(rstd + source, mask=valid, other=0.0)[None, :]
    target = gradient + row[:, None] * channels + channel[None, :]
    tl.store(target, rounded(total, gradient.dtype.element_ty), mask=inside)


def _tile(y: torch.Tensor, outputs: int, expanded: int) -> dict[str, int]:
    """Return the edges of the tiles, all channels at once, and launch options: few registers, little shared memory."""
    block_c, block_o = block(y.shape[1], y.shape[1] * 2), block(outputs, outputs * 2)
    row = max(block_c, block_o) * y.element_size()  # bytes
    block_v = 64 if row <= 128 else 32
    block_e = block(expanded, 64 if row <= 128 else 32 if row <= 256 else 16)
    tile = {"BLOCK_V": block_v, "BLOCK_C": block_c, "BLOCK_E": block_e, "BLOCK_O": block_o}
    return {**tile, "num_warps": 8, "num_stages": 2}


def _sizes(y: torch.Tensor, w3: torch.Tensor) -> tuple[int, int, int, int]:
    return y.shape[2] * y.shape[3] * y.shape[4], y.shape[1], *w3.shape


def mlp(
    y: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """
    Write compression(GELU(expansion(normalized y))) [+ residual] into ``out``.

    Args:
        y: (N, C, *spatial), channels-last in memory.
        mean: (N, C), float32.
        rstd: (N, C), float32.
        w2: (C, E), of y's type: the expansion, the norm's weight multiplied in.
        b2: (E), float32: its bias, the norm's bias multiplied in.
        w3: (E, O), of y's type: the compression.
        b3: (O), float32.
        residual: (N, O, *spatial), channels-last in memory, or ``None``.
        out: likewise.
    """
    voxels, channels, expanded, outputs = sizes = _sizes(y, w3)
    tile = _tile(y, outputs, expanded)
    _mlp_kernel[(triton.cdiv(voxels, tile["BLOCK_V"]), y.shape[0])](
        y,
        mean,
        rstd,
        w2,
        b2,
        w3,
        b3,
        out if residual is None else residual,
        out,
        *sizes,
        HAS_RESIDUAL=residual is not None,
        PRECISION=precision(),
        **tile,
    )
    return out


def mlp_sums(
    y: torch.Tensor,
    g: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    w3: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return the sums over voxels u^T z (N, E, C), u^T 1 (N, E) and h^T g (N, E, O), float32, of the module's docstring.

    Args as for :py:func:`mlp`; ``g`` (N, O, *spatial) is the gradient of its output, of y's type.
    """
    voxels, channels, expanded, outputs = sizes = _sizes(y, w3)
    samples, tile = y.shape[0], _tile(y, outputs, expanded)
    blocks_e, blocks_v = triton.cdiv(expanded, tile["BLOCK_E"]), triton.cdiv(voxels, tile["BLOCK_V"])
    tiles = triton.cdiv(blocks_v, max(1, PROGRAMS // (blocks_e * samples)))
    parts = triton.cdiv(blocks_v, tiles)
    shapes = ((samples, parts, expanded, channels), (samples, parts, expanded), (samples, parts, expanded, outputs))
    sums = [torch.empty(shape, dtype=torch.float32, device=y.device) for shape in shapes]
    _sums_kernel[(blocks_e, parts, samples)](
        y, g, mean, rstd, w2, b2, w3, *sums, *sizes, tiles, PRECISION=precision(), **tile
    )
    sum_z, sum_1, sum_g = (total.sum(1) for total in sums)
    return sum_z, sum_1, sum_g


def mlp_input_gradient(
    y: torch.Tensor,
    g: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    w3: torch.Tensor,
    average_1: torch.Tensor,
    average_z: torch.Tensor,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """
    Write the gradient of ``y`` into ``gradient``.

    Args as for :py:func:`mlp_sums`; ``average_1`` and ``average_z`` (N, C), float32, are the averages over the
    voxels of u w2^T and of (u w2^T) * z.
    """
    voxels, channels, expanded, outputs = sizes = _sizes(y, w3)
    tile = _tile(y, outputs, expanded)
    _input_gradient_kernel[(triton.cdiv(voxels, tile["BLOCK_V"]), y.shape[0])](
        y, g, mean, rstd, w2, b2, w3, average_1, average_z, gradient, *sizes, PRECISION=precision(), **tile
    )
    return gradient
