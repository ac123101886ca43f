"""Depthwise 3D convolutions of channels-last volumes ``(D, H, W, C)``, slab by slab along the first axis.

A slab is small enough to stay in the processor's cache until its consumer has read it. Channels-last is the layout for
which oneDNN has a fast depthwise kernel; its transposed depthwise convolution is slow, so that one is taken apart: of a
transposed convolution with stride 2, the output voxels of one parity per axis are an ordinary convolution of the input
with every second tap of the kernel, reversed. Eight parities are eight small convolutions without inserted zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["Phase", "depthwise_slabs", "slab_ranges", "transposed_phases"]

SLAB_ELEMENTS = 1 << 19  # values per output slab: 2 MiB


def depthwise_slabs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...], stride: int = 1
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """
    Convolve every channel with its own kernel.

    Args:
        x: ``(D, H, W, C)``, contiguous.
        weight: ``(C, 1, kD, kH, kW)``.
        bias: ``(C)`` or ``None``; read anew for every slab, so that it may be changed in between.
        padding: zeros on both sides of each spatial axis.
        stride: the same for the three axes. Defaults to 1.

    Yields:
        first plane, plane after the last, and their values ``(planes, H', W', C)``, which may be any strides.
    """
    sizes = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(x.shape, padding, weight.shape[2:])]
    if min(sizes) < 1:
        return
    volume = x.unsqueeze(0).permute(0, 4, 1, 2, 3)  # in this order, its strides say "channels last"
    for start, stop in slab_ranges((*sizes, x.shape[3])):
        source, pad = volume, padding[0]
        if stop - start < sizes[0]:
            source, pad = _input_planes(volume, start * stride - pad, (stop - 1) * stride - pad + weight.shape[2]), 0
        y = F.conv3d(source, weight, bias, stride, (pad, *padding[1:]), groups=x.shape[3])
        yield start, stop, y[0].permute(1, 2, 3, 0)


def slab_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first plane and the one after the last of each slab of a volume ``(D, H, W, C)``."""
    planes = max(1, SLAB_ELEMENTS // max(1, shape[1] * shape[2] * shape[3]))
    for start in range(0, shape[0], planes):
        yield start, min(start + planes, shape[0])


def _input_planes(volume: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The planes ``first <= i < last`` of ``volume``, ``(1, C, D, H, W)``, zero where there are none."""
    before, after = max(-first, 0), max(last - volume.shape[2], 0)
    planes = volume.narrow(2, max(first, 0), last - first - before - after)
    return F.pad(planes, (0, 0, 0, 0, before, after)) if before or after else planes


class Phase(NamedTuple):
    """The output voxels of one parity per axis of a transposed convolution with stride 2."""

    parity: tuple[int, int, int]
    weight: torch.Tensor  # (C, 1, taps, taps, taps) of the ordinary convolution that gives them
    padding: tuple[int, int, int]

    def output_shape(self, x: torch.Tensor) -> tuple[int, int, int, int]:
        """Shape ``(D', H', W', C)`` of what ``x``, ``(D, H, W, C)``, gives: an odd parity lacks the last plane."""
        return (*(size - parity for size, parity in zip(x.shape, self.parity)), x.shape[3])


def transposed_phases(weight: torch.Tensor) -> list[Phase]:
    """
    Take a transposed convolution with stride 2, odd kernel k >= 3 and padding k // 2 apart into eight convolutions.

    Output voxel ``o = 2 i + parity`` sums tap ``j`` times input voxel ``(o + k // 2 - j) / 2`` over the j for which
    that is whole: for parity 0 an odd number of taps around i, for parity 1 an even number around i + 1/2. An axis of
    n voxels gives n outputs of parity 0 and n - 1 of parity 1.

    Args:
        weight: ``(C, 1, k, k, k)``, of the transposed convolution.

    Returns:
        the phases, those with the most taps first.
    """
    kernel = weight.shape[2]
    taps = [[j for j in range(kernel) if (parity + kernel // 2 - j) % 2 == 0][::-1] for parity in (0, 1)]
    phases = []
    for parity in product((0, 1), repeat=3):
        part = weight
        for axis, p in enumerate(parity):
            part = part.index_select(axis + 2, torch.tensor(taps[p], device=weight.device))
        phases.append(Phase(parity, part, tuple((len(taps[p]) - 1) // 2 for p in parity)))
    return sorted(phases, key=lambda phase: phase.weight[0].numel(), reverse=True)
