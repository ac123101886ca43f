"""Instance norm, expansion, GELU and compression of rows of voxels ``(V, C)`` without an expanded or normalized volume.

With one group per channel the norm is, given each channel's mean and variance over the voxels, a scale and a shift per
channel; both are folded into the weight and bias of the expansion. Rows then pass through expansion, GELU and
compression in chunks whose expanded values stay in the processor's cache, by the matrix ``products`` of the type.

Rows may be bfloat16: products then have bfloat16 factors and float32 sums, and the statistics are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ....memory import empty
from .common import BlockParameters
from .products import products_for

__all__ = [
    "ChannelStatistics",
    "PointwiseWeights",
    "PreciseChannelStatistics",
    "as_rows",
    "channel_means",
    "chunks",
    "expand_compress",
    "fold_norm",
]

CHUNK_ELEMENTS = 1 << 19  # of the expanded tensor at a time: it, and the three of the backward pass, stay in the caches


def as_rows(volume: torch.Tensor) -> torch.Tensor:
    """Return the voxels ``(V, C)`` of a volume ``(D, H, W, C)``: a view if it is contiguous."""
    return volume.reshape(-1, volume.shape[-1])


def chunks(rows: torch.Tensor, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the rows, and the rows in them: with ``width`` columns, ``CHUNK_ELEMENTS`` at a time."""
    halves = 2 if rows.dtype == torch.bfloat16 else 1
    length = max(1, halves * CHUNK_ELEMENTS // width)
    for start in range(0, len(rows), length):
        part = slice(start, start + length)
        yield part, rows[part]


# --- statistics of the norm ------------------------------------------------------------------------------------------


class ChannelStatistics:
    """
    Mean and variance of each channel over voxels that come in parts, for inference.

    Every part's own mean is subtracted before squaring, and the parts are combined in float64: no digits are lost
    where the mean is large compared with the deviation.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[torch.Tensor] = []
        self._variances: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Add voxels ``(V, C)``."""
        mean, variance = _mean_and_variance(rows)
        self._counts.append(rows.shape[0])
        self._means.append(mean)
        self._variances.append(variance)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel was added yet."""
        return not self._counts

    def mean_and_scale(self, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and 1 / sqrt(biased variance + eps), each ``(C)``, float64."""
        counts = torch.tensor(self._counts, dtype=torch.float64, device="cpu")
        weights = counts / counts.sum()
        means, variances = torch.stack(self._means).double(), torch.stack(self._variances).double()
        mean = weights @ means
        return mean, torch.rsqrt(weights @ (variances + (means - mean).square_()) + eps)


def channel_means(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel of voxels ``(V, C)``, float32; for bfloat16 without a copy of them in float32."""
    return _mean_and_variance(rows)[0]


def _mean_and_variance(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    running: list[torch.Tensor | None] = [None, None]
    if rows.dtype == torch.bfloat16:  # with running statistics in float32, the results are, too
        running = list(torch.zeros(2, rows.shape[1], device=rows.device, dtype=torch.float32))
    return torch.batch_norm_update_stats(rows, running[0], running[1], 0.0)


class PreciseChannelStatistics:
    """
    The same for training, from the means and squared deviations of chunks (Chan et al., 1983).

    :py:class:`ChannelStatistics` is faster, but its operator adds up rows one by one, which costs gradients a digit.
    """

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        self._centered = empty((max(1, CHUNK_ELEMENTS // channels), channels), dtype)
        self._counts: list[int] = []
        self._means: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Add voxels ``(V, C)``."""
        for _, chunk in chunks(rows, rows.shape[1]):
            mean = chunk.mean(0)
            centered = torch.sub(chunk, mean, out=self._centered[: len(chunk)])
            self._counts.append(len(chunk))
            self._means.append(mean)
            self._squares.append(torch.mul(centered, centered, out=centered).sum(0))

    def mean_and_scale(self, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and 1 / sqrt(biased variance + eps), each ``(C)``, of the rows' type."""
        means, squares = torch.stack(self._means), torch.stack(self._squares)
        weights = torch.tensor(self._counts, dtype=means.dtype, device=means.device) / sum(self._counts)
        mean = weights @ means
        variance = squares.sum(0) / sum(self._counts) + weights @ (means - mean).square_()
        return mean, torch.rsqrt(variance + eps)


# --- products --------------------------------------------------------------------------------------------------------


class PointwiseWeights(NamedTuple):
    """The two matrix products of a block, the norm folded into the first."""

    expand: torch.Tensor  # (E, C)
    expand_bias: torch.Tensor  # (E)
    compress: torch.Tensor  # (C', E)
    compress_bias: torch.Tensor  # (C')

    def to(self, dtype: torch.dtype) -> PointwiseWeights:
        """Return them in a type."""
        return PointwiseWeights(*(tensor.to(dtype) for tensor in self))


def fold_norm(parameters: BlockParameters, scale: torch.Tensor, mean: torch.Tensor) -> PointwiseWeights:
    """
    Return the products of a block with the norm in the first.

    Args:
        parameters: those of the block.
        scale: ``(C)``, 1 / sqrt(variance + eps) of each channel.
        mean: ``(C)``, that of each channel.

    Returns:
        the products; the bias of the second one includes that of ``res_conv``, if there is one.
    """
    matrix = parameters.expansion_weight.flatten(1)
    factor = parameters.norm_weight.to(scale.dtype) * scale
    shift = parameters.norm_bias.to(scale.dtype) - mean * factor
    expand_bias = torch.addmv(parameters.expansion_bias, matrix, shift.to(matrix.dtype))
    compress_bias = parameters.compression_bias
    if parameters.residual_bias is not None:
        compress_bias = compress_bias + parameters.residual_bias
    compress = parameters.compression_weight.flatten(1)
    return PointwiseWeights(matrix * factor.to(matrix.dtype), expand_bias, compress, compress_bias)


def expand_compress(
    rows: torch.Tensor, weights: PointwiseWeights, out: torch.Tensor, base: torch.Tensor | None = None
) -> None:
    """
    Put ``gelu(rows @ expand' + expand_bias) @ compress' + compress_bias + base`` into ``out``.

    Args:
        rows: ``(V, C)``, contiguous.
        weights: the matrices and biases.
        out: ``(V, C')``, contiguous.
        base: ``(V, C')``, which may be ``out`` itself. Defaults to ``None``, nothing.
    """
    products = products_for(rows.dtype)
    for part, chunk in chunks(rows, len(weights.expand)):
        hidden = products.linear_gelu(chunk, weights.expand, weights.expand_bias)
        if base is None:
            out[part] = products.linear(hidden, weights.compress, weights.compress_bias)
            continue
        if base is not out:
            out[part] = base[part]
        products.add_linear(out[part], hidden, weights.compress, weights.compress_bias)
