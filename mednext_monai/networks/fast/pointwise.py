"""Instance norm, expansion, GELU and compression of rows of voxels ``(V, C)`` without an expanded or normalised volume.

With one group per channel the norm is, given each channel's mean and variance over the voxels, a scale and a shift per
channel; both are folded into the weight and bias of the expansion. Rows then pass through expansion, GELU and
compression in chunks whose expanded values stay in the processor's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn

from .workspace import Workspace

__all__ = ["ChannelStatistics", "PointwiseWeights", "expand_compress", "folded_weights"]

CHUNK_ELEMENTS = 1 << 19  # expanded values per chunk: 2 MiB


class ChannelStatistics:
    """Mean and variance of each channel over voxels that come in parts.

    Every part's own mean is subtracted before squaring, and the parts are combined in float64: no digits are lost
    where the mean is large against the deviation.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, rows: torch.Tensor) -> None:
        """Add voxels ``(V, C)``."""
        part = rows.shape[0]
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(rows, None, None, 0.0))
        total = self.count + part
        change = mean - self.mean
        self._squares += variance * part + change.square() * (self.count * part / total)
        self.mean += change * (part / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """Squared deviations divided by the number of voxels, as norms use it."""
        return self._squares / self.count


class PointwiseWeights(NamedTuple):
    """The two matrix products of a block."""

    expand: torch.Tensor  # (C, E)
    expand_bias: torch.Tensor  # (E)
    compress: torch.Tensor  # (E, C')
    compress_bias: torch.Tensor  # (C')


def folded_weights(block: nn.Module, statistics: ChannelStatistics) -> PointwiseWeights:
    """Return the products of ``block`` (its ``norm``, ``conv2`` and ``conv3``) with the norm folded in."""
    norm, expand, compress = block.norm, block.conv2, block.conv3
    matrix = expand.weight.flatten(1)
    scale = norm.weight.double() * torch.rsqrt(statistics.variance + norm.eps)
    shift = norm.bias.double() - statistics.mean * scale
    bias = torch.addmv(expand.bias, matrix, shift.to(matrix.dtype))
    return PointwiseWeights((matrix * scale.to(matrix.dtype)).t(), bias, compress.weight.flatten(1).t(), compress.bias)


def expand_compress(
    rows: torch.Tensor, weights: PointwiseWeights, out: torch.Tensor, accumulate: bool, workspace: Workspace
) -> None:
    """
    Put ``gelu(rows @ expand + expand_bias) @ compress + compress_bias`` into ``out``.

    Args:
        rows: ``(V, C)``, contiguous.
        weights: the matrices and biases.
        out: ``(V, C')``, contiguous.
        accumulate: whether to add to what ``out`` holds.
        workspace: lends the memory for a chunk's expanded values.
    """
    hidden_channels = weights.expand.shape[1]
    chunk = max(1, CHUNK_ELEMENTS // hidden_channels)
    scratch = workspace.take("hidden", (min(chunk, rows.shape[0]), hidden_channels))
    for start in range(0, rows.shape[0], chunk):
        part, target = rows[start : start + chunk], out[start : start + chunk]
        hidden = scratch[: part.shape[0]]
        torch.addmm(weights.expand_bias, part, weights.expand, out=hidden)
        torch.ops.aten.gelu_(hidden)
        if accumulate:
            target.add_(weights.compress_bias).addmm_(hidden, weights.compress)
        else:
            torch.addmm(weights.compress_bias, hidden, weights.compress, out=target)
