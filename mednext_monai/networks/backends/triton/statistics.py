"""Mean and reciprocal standard deviation of every channel of every sample, in channels-last layout.

Per tile the mean is subtracted before squaring; tiles and programs are merged by counts, means and squared deviations
(Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), which
keeps the digits that ``E[x^2] - E[x]^2`` loses. All in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import block

__all__ = ["instance_statistics"]

PARTS = 256  # programs per sample and block of channels


@triton.jit
def _moments_kernel(
    x,
    means,
    deviations,  # x (N, V, C); means and summed squared deviations (N, parts, C) float32
    voxels,
    channels,
    tiles,  # tiles per program
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    part, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < channels
    mean = tl.zeros([BLOCK_C], tl.float32)
    deviation = tl.zeros([BLOCK_C], tl.float32)
    before = 0.0
    for tile in range(tiles):
        first = (part * tiles + tile) * BLOCK_V
        voxel = first + tl.arange(0, BLOCK_V)
        mask = (voxel < voxels)[:, None] & real[None, :]
        offset = (sample * voxels + voxel)[:, None] * channels + channel[None, :]
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(voxels - first, BLOCK_V), 0).to(tl.float32)
        tile_mean = tl.sum(value, axis=0) / tl.maximum(count, 1.0)
        centered = tl.where(mask, value - tile_mean[None, :], 0.0)
        share = count / tl.maximum(before + count, 1.0)  # 0 for an empty tile, which then changes nothing
        difference = tile_mean - mean
        mean += difference * share
        deviation += tl.sum(centered * centered, axis=0) + difference * difference * (before * share)
        before += count
    target = (sample * tl.num_programs(0) + part) * channels + channel
    tl.store(means + target, mean, mask=real)
    tl.store(deviations + target, deviation, mask=real)


@triton.jit
def _merge_kernel(
    means,
    deviations,
    mean,
    rstd,  # (N, parts, C) each; results (N, C)
    voxels,
    channels,
    parts,
    voxels_per_part,
    eps,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.arange(0, BLOCK_P)
    mask = (part < parts)[:, None] & (channel < channels)[None, :]
    source = (sample * parts + part)[:, None] * channels + channel[None, :]
    count = tl.maximum(tl.minimum(voxels - part * voxels_per_part, voxels_per_part), 0).to(tl.float32)[:, None]
    part_mean = tl.load(means + source, mask=mask, other=0.0)
    part_deviation = tl.load(deviations + source, mask=mask, other=0.0)
    whole = tl.sum(part_mean * (count / voxels), axis=0)
    difference = part_mean - whole[None, :]
    variance = tl.sum((part_deviation + difference * difference * count) / voxels, axis=0)
    target = sample * channels + channel
    tl.store(mean + target, whole, mask=channel < channels)
    tl.store(rstd + target, 1.0 / tl.sqrt(variance + eps), mask=channel < channels)


def instance_statistics(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return mean and ``1 / sqrt(variance + eps)`` over the voxels, each (N, C) float32.

    Args:
        x: (N, C, *spatial), channels-last in memory.
        eps: added to the (biased) variance.
    """
    samples, channels, *size = x.shape
    voxels = size[0] * size[1] * size[2]
    block_c, block_v = block(channels, 64), 128
    tiles = triton.cdiv(triton.cdiv(voxels, block_v), PARTS)
    parts = triton.cdiv(voxels, block_v * tiles)
    means, deviations = torch.empty((2, samples, parts, channels), dtype=torch.float32, device=x.device)
    blocks_c = triton.cdiv(channels, block_c)
    _moments_kernel[(parts, blocks_c, samples)](
        x, means, deviations, voxels, channels, tiles, BLOCK_V=block_v, BLOCK_C=block_c
    )
    mean, rstd = (torch.empty((samples, channels), dtype=torch.float32, device=x.device) for _ in range(2))
    block_c = block(channels, 16)
    _merge_kernel[(triton.cdiv(channels, block_c), samples)](
        means,
        deviations,
        mean,
        rstd,
        voxels,
        channels,
        parts,
        block_v * tiles,
        eps,
        BLOCK_P=triton.next_power_of_2(parts),
        BLOCK_C=block_c,
    )
    return mean, rstd
