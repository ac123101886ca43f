"""Instance norm, expansion, GELU and compression of rows of voxels ``(V, C)`` without an expanded or normalised volume.

With one group per channel the norm is, given each channel's mean and variance over the voxels, a scale and a shift per
channel; both are folded into the weight and bias of the expansion. Rows then pass through expansion, GELU and
compression in chunks whose expanded values stay in the processor's cache. Where torch has it, the expansion is the
product of oneDNN that applies bias and GELU before it stores a value, the operation that ``torch.compile`` would use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[torch.Tensor] = []
        self._variances: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Add voxels ``(V, C)``."""
        mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
        self._counts.append(rows.shape[0])
        self._means.append(mean)
        self._variances.append(variance)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel was added yet."""
        return not self._counts

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and squared deviation divided by the number of voxels, as norms use it; each ``(C)``, float64."""
        counts = torch.tensor(self._counts, dtype=torch.float64, device="cpu")
        weights = counts / counts.sum()
        means, variances = torch.stack(self._means).double(), torch.stack(self._variances).double()
        mean = weights @ means
        return mean, weights @ (variances + (means - mean).square_())


class PointwiseWeights(NamedTuple):
    """The two matrix products of a block."""

    expand: torch.Tensor  # (E, C)
    expand_bias: torch.Tensor  # (E)
    compress: torch.Tensor  # (E, C')
    compress_bias: torch.Tensor  # (C')


def folded_weights(block: nn.Module, statistics: ChannelStatistics) -> PointwiseWeights:
    """Return the products of ``block`` (its ``norm``, ``conv2`` and ``conv3``) with the norm folded in."""
    norm, expand, compress = block.norm, block.conv2, block.conv3
    matrix = expand.weight.flatten(1)
    mean, variance = statistics.mean_and_variance()
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.double() - mean * scale
    bias = torch.addmv(expand.bias, matrix, shift.to(matrix.dtype))
    return PointwiseWeights(matrix * scale.to(matrix.dtype), bias, compress.weight.flatten(1).t(), compress.bias)


def expand_compress(
    rows: torch.Tensor, weights: PointwiseWeights, out: torch.Tensor, accumulate: bool, workspace: Workspace
) -> None:
    """
    Put ``gelu(rows @ expand' + expand_bias) @ compress + compress_bias`` into ``out``.

    Args:
        rows: ``(V, C)``, contiguous.
        weights: the matrices and biases.
        out: ``(V, C')``, contiguous.
        accumulate: whether to add to what ``out`` holds.
        workspace: lends the memory for a chunk's expanded values.
    """
    hidden_channels = weights.expand.shape[0]
    chunk = max(1, CHUNK_ELEMENTS // hidden_channels)
    fused = _linear_gelu()
    scratch = None if fused else workspace.take("hidden", (min(chunk, rows.shape[0]), hidden_channels))
    for part, target in zip(rows.split(chunk), out.split(chunk)):
        if fused:
            hidden = fused(part, weights.expand, weights.expand_bias)
        else:
            hidden = torch.addmm(weights.expand_bias, part, weights.expand.t(), out=scratch[: part.shape[0]])
            torch.ops.aten.gelu_(hidden)
        if accumulate:
            target.add_(weights.compress_bias).addmm_(hidden, weights.compress)
        else:
            torch.addmm(weights.compress_bias, hidden, weights.compress, out=target)


@functools.cache
def _linear_gelu() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Return ``gelu(rows @ weight' + bias)`` in one operation, or ``None`` where this torch has none that is right."""

    def linear_gelu(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none")

    like = {"dtype": torch.float32, "device": "cpu"}
    rows, weight = torch.linspace(-6.0, 6.0, 128, **like).view(8, 16), torch.eye(32, 16, **like)
    bias = torch.linspace(-0.5, 0.5, 32, **like)
    expected = torch.nn.functional.gelu(torch.addmm(bias, rows, weight.t()))
    try:  # the operation is private to torch: its name and arguments may change
        value = linear_gelu(rows, weight, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return linear_gelu if torch.allclose(value, expected, rtol=1e-5, atol=1e-6) else None
