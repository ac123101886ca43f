"""Instance norm, expansion, GELU and compression of rows of voxels ``(V, C)`` without an expanded or normalized volume.

With one group per channel the norm is, given each channel's mean and variance over the voxels, a scale and a shift per
channel; both are folded into the weight and bias of the expansion. Rows then pass through expansion, GELU and
compression in chunks whose expanded values stay in the processor's cache. Where torch has it, inference uses the matrix
product of oneDNN that applies bias and GELU before it stores a value, as ``torch.compile`` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ....memory import empty
from .common import BlockParameters

__all__ = [
    "ChannelStatistics",
    "PointwiseWeights",
    "PreciseChannelStatistics",
    "as_rows",
    "chunk_buffers",
    "chunks",
    "expand_compress",
    "fold_norm",
]

CHUNK_ELEMENTS = 1 << 18  # of the expanded tensor at a time: the four such buffers of training stay in the caches
INFERENCE_CHUNKS = 2  # times as long: there is only one buffer


def as_rows(volume: torch.Tensor) -> torch.Tensor:
    """Return the voxels ``(V, C)`` of a volume ``(D, H, W, C)``: a view if it is contiguous."""
    return volume.reshape(-1, volume.shape[-1])


def chunks(rows: torch.Tensor, width: int, factor: int = 1) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the rows, and the rows in them: with ``width`` columns, ``factor * CHUNK_ELEMENTS`` at a time."""
    length = max(1, factor * CHUNK_ELEMENTS // width)
    for start in range(0, len(rows), length):
        part = slice(start, start + length)
        yield part, rows[part]


def chunk_buffers(rows: torch.Tensor, width: int, *columns: int, factor: int = 1) -> list[torch.Tensor]:
    """Return uninitialized matrices with the rows of one of the ``chunks`` and the given numbers of columns."""
    length = min(len(rows), max(1, factor * CHUNK_ELEMENTS // width))
    return [empty((length, count), rows.dtype) for count in columns]


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
        mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
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
    compress: torch.Tensor  # (E, C')
    compress_bias: torch.Tensor  # (C')


def fold_norm(parameters: BlockParameters, scale: torch.Tensor, mean: torch.Tensor | None = None) -> PointwiseWeights:
    """
    Return the products of a block with the norm in the first.

    Args:
        parameters: those of the block.
        scale: ``(C)``, 1 / sqrt(variance + eps) of each channel.
        mean: ``(C)``. Defaults to ``None``: the rows come with it subtracted.

    Returns:
        the products; the bias of the second one includes that of ``res_conv``, if there is one.
    """
    matrix = parameters.expansion_weight.flatten(1)
    factor = parameters.norm_weight.to(scale.dtype) * scale
    shift = parameters.norm_bias if mean is None else parameters.norm_bias.to(scale.dtype) - mean * factor
    expand_bias = torch.addmv(parameters.expansion_bias, matrix, shift.to(matrix.dtype))
    compress_bias = parameters.compression_bias
    if parameters.residual_bias is not None:
        compress_bias = compress_bias + parameters.residual_bias
    compress = parameters.compression_weight.flatten(1).t()
    return PointwiseWeights(matrix * factor.to(matrix.dtype), expand_bias, compress, compress_bias)


def expand_compress(
    rows: torch.Tensor,
    weights: PointwiseWeights,
    out: torch.Tensor,
    base: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
) -> None:
    """
    Put ``gelu((rows - mean) @ expand' + expand_bias) @ compress + compress_bias + base`` into ``out``.

    Args:
        rows: ``(V, C)``, contiguous.
        weights: the matrices and biases.
        out: ``(V, C')``, contiguous.
        base: ``(V, C')``, which may be ``out`` itself. Defaults to ``None``, nothing.
        mean: ``(C)``, for training. Defaults to ``None``, zero: the weights then have it in them. Only without it the
            fused product of oneDNN is used, whose GELU differs by rounding from the one that the backward pass repeats.
    """
    width, columns = weights.expand.shape
    linear_gelu = _fused_linear_gelu() if mean is None else None
    factor = INFERENCE_CHUNKS if mean is None else 1
    buffers = chunk_buffers(rows, width, columns, width, factor=factor) if linear_gelu is None else []
    for part, chunk in chunks(rows, width, factor):
        if linear_gelu is not None:
            hidden = linear_gelu(chunk, weights.expand, weights.expand_bias)
        else:
            centered, hidden = (buffer[: len(chunk)] for buffer in buffers)
            chunk = chunk if mean is None else torch.sub(chunk, mean, out=centered)
            torch.addmm(weights.expand_bias, chunk, weights.expand.t(), out=hidden)
            torch.ops.aten.gelu_(hidden)
        if base is None:
            torch.addmm(weights.compress_bias, hidden, weights.compress, out=out[part])
        else:
            torch.add(base[part], weights.compress_bias, out=out[part]).addmm_(hidden, weights.compress)


@functools.cache
def _fused_linear_gelu() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Return ``gelu(rows @ weight' + bias)`` in one operation, or ``None`` if this torch has none that is correct."""

    def linear_gelu(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none")

    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    rows, weight = torch.linspace(-6.0, 6.0, 128, **options).view(8, 16), torch.eye(32, 16, **options)
    bias = torch.linspace(-0.5, 0.5, 32, **options)
    expected = torch.nn.functional.gelu(torch.addmm(bias, rows, weight.t()))
    try:  # the operation is private to torch: its name and arguments may change
        value = linear_gelu(rows, weight, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return linear_gelu if torch.allclose(value, expected, rtol=1e-5, atol=1e-6) else None
