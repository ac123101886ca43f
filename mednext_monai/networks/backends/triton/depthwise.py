"""Depthwise 3D convolution, plain or transposed, in channels-last layout: forward, backward-data, backward-weight.

A program computes a tile of one plane for a block of channels. Two formulas cover everything, with padding K // 2:

- convolution: ``y[o] = sum_t w[t] x[o * stride + t - pad]``;
- transposed: ``y[o] = sum_t w[t] x[(o + pad - t) / stride]`` over the t that stride divides.

Each is the other's backward-data (with stride 1: the convolution with the flipped kernel). In the transposed one the
outputs of a tile lie ``stride`` apart, so that all use the same taps and none is computed for nothing.
Products and sums are float32 whatever the type of the tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import block, rounded

__all__ = ["depthwise", "depthwise_weight"]

PROGRAMS = 2048  # of the weight gradient: enough to fill a GPU; fixed, so that sums do not depend on the device
TILE = 2048  # outputs of a program of the convolution
ACCUMULATORS = 8192  # floats that a program of the weight gradient keeps in registers


@triton.jit
def _depthwise_kernel(
    x,
    w,
    b,
    y,  # x (N, DI, HI, WI, C), w (K^3, C) float32, b (C) float32, y (N, DO, HO, WO, C)
    channels,
    di,
    hi,
    wi,
    do,
    ho,
    wo,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    PAD: tl.constexpr = K // 2
    STEP: tl.constexpr = STRIDE if TRANSPOSED else 1  # between the outputs of a tile, and between its taps
    TAPS: tl.constexpr = (K + STEP - 1) // STEP
    columns = tl.cdiv(tl.cdiv(wo, STEP), BLOCK_W) * STEP
    rows = tl.cdiv(tl.cdiv(ho, STEP), BLOCK_H) * STEP
    tile = tl.program_id(0)
    column, row, od = tile % columns, tile // columns % rows, tile // columns // rows
    sample = tl.program_id(2).to(tl.int64)
    voxel = tl.arange(0, BLOCK_H * BLOCK_W)
    oh = (row // STEP * BLOCK_H + voxel // BLOCK_W) * STEP + row % STEP
    ow = (column // STEP * BLOCK_W + voxel % BLOCK_W) * STEP + column % STEP
    inside = (oh < ho) & (ow < wo)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < channels
    first_d, first_h, first_w = (od + PAD) % STEP, (row % STEP + PAD) % STEP, (column % STEP + PAD) % STEP
    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], tl.float32)
    for step_d in range(TAPS):
        kd = first_d + step_d * STEP
        zi = (od + PAD - kd) // STRIDE if TRANSPOSED else od * STRIDE + kd - PAD
        plane = x + (sample * di + zi) * hi * wi * channels
        in_plane = (kd < K) & (zi >= 0) & (zi < di)
        for step_h in range(TAPS):
            kh = first_h + step_h * STEP
            yi = (oh + PAD - kh) // STRIDE if TRANSPOSED else oh * STRIDE + kh - PAD
            in_row = inside & (yi >= 0) & (yi < tl.where(in_plane & (kh < K), hi, 0))
            for step_w in tl.static_range(TAPS):
                kw = first_w + step_w * STEP
                xi = (ow + PAD - kw) // STRIDE if TRANSPOSED else ow * STRIDE + kw - PAD
                valid = in_row & (xi >= 0) & (xi < tl.where(kw < K, wi, 0))
                offset = (yi * wi + xi)[:, None] * channels + channel[None, :]
                value = tl.load(plane + offset, mask=valid[:, None] & real[None, :], other=0.0)
                tap = w + ((kd * K + kh) * K + kw) * channels + channel
                weight = tl.load(tap, mask=channel < tl.where((kd < K) & (kh < K) & (kw < K), channels, 0), other=0.0)
                total += value.to(tl.float32) * weight[None, :]
    if HAS_BIAS:
        total += tl.load(b + channel, mask=real, other=0.0)[None, :]
    target = y + (sample * do + od) * ho * wo * channels + (oh * wo + ow)[:, None] * channels + channel[None, :]
    tl.store(target, rounded(total, y.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit
def _weight_kernel(
    a,
    b,
    partial,  # a (N, DA, HA, WA, C), b (N, DB, HB, WB, C), partial (programs, K, K * K, C) float32
    voxels,
    channels,
    da,
    ha,
    wa,
    db,
    hb,
    wb,
    tiles,  # voxels = N * DA * HA * WA; tiles per program
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum ``a[o] * b[o * stride + t - pad]`` over the program's voxels o, for the taps t of one plane of the kernel."""
    PAD: tl.constexpr = K // 2
    kd, program = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < channels
    tap = tl.arange(0, BLOCK_T)
    kh, kw = tap // K, tap % K
    total = tl.zeros([BLOCK_T, BLOCK_V, BLOCK_C], tl.float32)
    for tile in range(program * tiles, (program + 1) * tiles):
        voxel = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = voxel < voxels
        ow, oh, od, sample = voxel % wa, voxel // wa % ha, voxel // wa // ha % da, voxel // wa // ha // da
        offset = voxel.to(tl.int64)[:, None] * channels + channel[None, :]
        left = tl.load(a + offset, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
        z = od * STRIDE + kd - PAD
        y = oh[None, :] * STRIDE + kh[:, None] - PAD
        x = ow[None, :] * STRIDE + kw[:, None] - PAD
        valid = (inside & (z >= 0) & (z < db))[None, :] & (y >= 0) & (y < hb) & (x >= 0) & (x < wb) & (kh < K)[:, None]
        source = ((sample * db + z)[None, :] * hb + y).to(tl.int64) * wb + x
        offset = source[:, :, None] * channels + channel[None, None, :]
        right = tl.load(b + offset, mask=valid[:, :, None] & real[None, None, :], other=0.0).to(tl.float32)
        total += left[None, :, :] * right
    target = partial + ((program * K + kd) * K * K + tap)[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(target, tl.sum(total, axis=1), mask=(kh < K)[:, None] & real[None, :])


def depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, transposed: bool, y: torch.Tensor
) -> torch.Tensor:
    """
    Write the convolution of ``x`` into ``y``, whose size says how far a transposed convolution reaches.

    Args:
        x: input (N, C, *spatial), channels-last in memory.
        weight: kernels (C, 1, K, K, K).
        bias: (C), or ``None``.
        stride: 1 or 2.
        transposed: whether the convolution is transposed.
        y: output (N, C, *spatial), channels-last in memory.
    """
    samples, channels, *size_in = x.shape
    size_out = y.shape[2:]
    k, step = weight.shape[-1], stride if transposed else 1
    taps = weight.float().reshape(channels, -1).t().contiguous()
    block_c = block(channels, 64)
    block_w = min(32, triton.next_power_of_2(triton.cdiv(size_out[2], step)))
    block_h = max(1, TILE // (block_c * block_w))
    rows, columns = (triton.cdiv(triton.cdiv(s, step), e) * step for s, e in zip(size_out[1:], (block_h, block_w)))
    grid = (size_out[0] * rows * columns, triton.cdiv(channels, block_c), samples)
    _depthwise_kernel[grid](
        x,
        taps,
        taps if bias is None else bias.float(),
        y,
        channels,
        *size_in,
        *size_out,
        K=k,
        STRIDE=stride,
        TRANSPOSED=transposed,
        HAS_BIAS=bias is not None,
        BLOCK_H=block_h,
        BLOCK_W=block_w,
        BLOCK_C=block_c,
    )
    return y


def depthwise_weight(a: torch.Tensor, b: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """
    Return the gradient (C, 1, K, K, K) of the kernels, float32, as ``sum_o a[o] b[o * stride + t - pad]``.

    Args:
        a: (N, C, *spatial), channels-last in memory: the gradient of a convolution's output; a transposed one's input.
        b: likewise: a convolution's input, or the gradient of a transposed one's output.
        kernel_size: K, odd.
        stride: 1 or 2.
    """
    samples, channels, *size = a.shape
    voxels = samples * size[0] * size[1] * size[2]
    block_t, block_c = triton.next_power_of_2(kernel_size**2), block(channels, 32)
    block_v = max(1, ACCUMULATORS // (block_t * block_c))
    blocks_c = triton.cdiv(channels, block_c)
    tiles = triton.cdiv(triton.cdiv(voxels, block_v), max(1, PROGRAMS // (kernel_size * blocks_c)))
    programs = triton.cdiv(triton.cdiv(voxels, block_v), tiles)
    partial = torch.empty((programs, kernel_size**3, channels), dtype=torch.float32, device=a.device)
    _weight_kernel[(kernel_size, programs, blocks_c)](
        a,
        b,
        partial,
        voxels,
        channels,
        *size,
        *b.shape[2:],
        tiles,
        K=kernel_size,
        STRIDE=stride,
        BLOCK_T=block_t,
        BLOCK_V=block_v,
        BLOCK_C=block_c,
    )
    return partial.sum(0).t().reshape(channels, 1, kernel_size, kernel_size, kernel_size)
