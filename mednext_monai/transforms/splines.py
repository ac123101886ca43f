"""Exact interpolation of images and labels on the CPU, fast enough for every training patch.

SciPy loops over all output voxels, with 64 neighbors each. Two reformulations give the same values faster:

- Separable operations (scaling, Gaussian smoothing, lower resolution) are products with one small matrix per axis,
  which includes the prefilter of the spline and the border rule.
- A rotation is not separable. For each voxel, 16 in-plane neighbors are a weighted sum of table rows, which
  ``torch.nn.functional.embedding_bag`` computes; each row holds eight neighboring coefficients along the last axis, of
  which four have nonzero weight.

Coordinates are computed in float64, images in float32. Images differ from those of SciPy in float64 by about 1e-6 of
the intensity range. The border rule is that of ``scipy.ndimage.map_coordinates(mode="constant")``: the spline is
mirrored about the outermost voxel centers, and the value outside of them is the constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product

import torch

from ..memory import empty

__all__ = ["affine_labels", "affine_linear", "affine_spline", "apply_along_axes", "spline_matrix"]

HALO = 10  # voxels after which a voxel's influence on spline coefficients has fallen to (2 - sqrt(3))^10 = 2e-6
SLAB, BLOCK = 8, 48  # rows of the prefilter's band per product: first axis (to stay in cache), others (times ROW)
ROW, STEP = 8, 5  # neighboring coefficients along the last axis in one table row; voxels from row to row
POLE = math.sqrt(3) - 2  # of the cubic spline's prefilter
REACH, TINY = 24, 1e-14  # voxels after which the prefilter's weight has fallen to 2e-14; smallest matrix entry kept


def cubic_bspline(distance: torch.Tensor) -> torch.Tensor:
    """Return the cubic B-spline at ``distance`` voxels from its center, any shape; nonzero for distances below 2."""
    distance = distance.abs()
    outer, inner = (2 - distance).clamp_(min=0), (1 - distance).clamp_(min=0)
    return (outer.pow(3) - inner.pow(3).mul_(4)).div_(6)


@lru_cache(maxsize=256)
def _prefilter(size: int) -> torch.Tensor:
    """
    Return the matrix ``(size, size)``, float64, from samples to cubic spline coefficients, with mirrored borders.

    It inverts ``(c[i-1] + 4 c[i] + c[i+1]) / 6``: a coefficient is the sum of the samples, extended by
    mirroring and weighted by ``sqrt(3) * POLE ** distance``.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    taps = torch.arange(-REACH, REACH + 1)
    weights = math.sqrt(3) * POLE ** taps.abs().double()
    index = _mirrored(torch.arange(size)[:, None] + taps, size)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, index, weights.expand(size, -1))


def spline_matrix(coordinates: torch.Tensor, size: int) -> torch.Tensor:
    """
    Return cubic spline interpolation along one axis as a matrix.

    Args:
        coordinates: ``(n,)``, float64, positions in voxels; 0 is the center of the first voxel.
        size: number of voxels of the axis.

    Returns:
        ``(n, size)``, float64. Rows of positions outside ``[0, size - 1]`` are zero.
    """
    inside = (coordinates >= 0) & (coordinates <= size - 1)
    taps = coordinates.floor()[:, None] + torch.arange(-1, 3)
    weights = cubic_bspline(coordinates[:, None] - taps) * inside[:, None]
    taps = _mirrored(taps.long().clamp(-size, 2 * size), size)
    matrix = torch.zeros(len(coordinates), size, dtype=torch.float64)
    matrix = matrix.scatter_add_(1, taps, weights) @ _prefilter(size)
    return matrix.where(matrix.abs() > TINY, 0)  # denormal numbers would make products slow


def _mirrored(index: torch.Tensor, size: int) -> torch.Tensor:
    """Map indices into ``[0, size)`` by mirroring about the outermost voxel centers."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def apply_along_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """
    Multiply all lines along each axis of ``volume`` by the matrix of the axis.

    Args:
        volume: ``(..., *spatial)``, as many spatial dimensions as there are matrices.
        matrices: ``(out, in)`` per spatial axis, or ``None`` for an unchanged axis.

    Returns:
        ``(..., *out)``, in the dtype of ``volume``; ``volume`` itself if every matrix is ``None``.
    """
    order = sorted(
        ((axis, matrix) for axis, matrix in enumerate(matrices) if matrix is not None),
        key=lambda entry: entry[1].shape[0] / entry[1].shape[1],  # shrinking axes first
    )
    dims = len(matrices)
    for axis, matrix in order:
        matrix = matrix.to(volume)
        if axis == dims - 1:
            volume = torch.matmul(volume, matrix.T)
            continue
        lines = volume.shape[volume.ndim - dims + axis :]
        out = torch.matmul(matrix, volume.reshape(*volume.shape[: volume.ndim - dims + axis + 1], -1))
        volume = out.reshape(*out.shape[:-1], *lines[1:])
    return volume


def _bands(
    indices: torch.Tensor, size: int, block: int, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """
    Divide rows ``indices`` of the prefilter, mirrored beyond the border, into small dense products.

    Yields:
        up to ``block`` rows, the columns that they need, and the matrix of these rows and columns.
    """
    indices = _mirrored(indices, size)
    matrix = _prefilter(size)[indices].to(dtype)
    for start in range(0, len(indices), block):
        rows = slice(start, min(start + block, len(indices)))
        low, high = int(indices[rows].min()) - HALO, int(indices[rows].max()) + HALO + 1
        columns = slice(max(low, 0), min(high, size))
        yield rows, columns, matrix[rows, columns]


def _coefficient_rows(volume: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """
    Return the table for ``embedding_bag``: spline coefficients of ``(C, X, Y, Z)`` in rows along the last axis.

    Returns:
        ``(rows, C * ROW)``, and the number of rows per step along the first and second axis. Each axis starts at
        coordinate -1; beyond the border the coefficients are mirrored.
    """
    channels, x, y, z = volume.shape
    blocks = -(-z // STEP)
    along = torch.arange(blocks)[:, None] * STEP + torch.arange(-1, ROW - 1)
    bands_y = list(_bands(torch.arange(-1, y + 2), y, BLOCK, volume.dtype))
    spreads_z = []  # per channel, the band with zero columns, so that products have their position in a row
    for rows, columns, band in _bands(along.flatten(), z, BLOCK, volume.dtype):
        spread = band.new_zeros(channels, band.shape[1], band.shape[0] // ROW, channels, ROW)
        for channel in range(channels):
            spread[channel, :, :, channel] = band.T.unflatten(1, (-1, ROW))
        spreads_z.append((rows, columns, spread.flatten(2)))
    table = empty((x + 3, y + 3, blocks, channels, ROW), volume.dtype)
    slab_x = volume.new_empty(SLAB, channels, y, z)
    slab_y = volume.new_empty(SLAB, y + 3, channels, z)
    for rows_x, columns_x, band_x in _bands(torch.arange(-1, x + 2), x, SLAB, volume.dtype):
        planes = len(band_x)
        for channel, values in enumerate(volume):
            slab_x[:planes, channel] = torch.mm(band_x, values[columns_x].view(-1, y * z)).view(-1, y, z)
            for rows, columns, band in bands_y:
                source, target = slab_x[:planes, channel, columns], slab_y[:planes, rows, channel]
                torch.bmm(band.expand(planes, -1, -1), source, out=target)
        lines = slab_y[:planes].view(-1, channels, z)
        target = table[rows_x].view(len(lines), -1)
        for rows, columns, spread in spreads_z:
            part = target[:, rows.start * channels : rows.stop * channels]
            torch.mm(lines[:, 0, columns], spread[0], out=part)
            for channel in range(1, channels):
                part.addmm_(lines[:, channel, columns], spread[channel])
    return table.view(-1, channels * ROW), ((y + 3) * blocks, blocks)


def _planes(
    matrix: torch.Tensor, offset: torch.Tensor, size: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """
    Compute the sampling positions ``matrix @ index + offset``, one output plane at a time.

    Yields:
        the points and the first corners of their cells, each ``(3, P)``, float64, with ``P = size[1] * size[2]``; and
        which points are inside a volume of ``shape``, ``(P,)``, or ``None`` if all are. Points outside are replaced by
        the first voxel.
    """
    rows = torch.arange(size[1], dtype=torch.float64)[:, None] * matrix[:, 1, None, None]
    columns = torch.arange(size[2], dtype=torch.float64) * matrix[:, 2, None, None]
    plane = (rows + columns).reshape(3, -1)
    ends = plane[:, [0, size[2] - 1, -size[2], -1]]  # extremes of an affine map are at the corners
    last = torch.as_tensor(shape, dtype=torch.float64)[:, None] - 1
    for i in range(size[0]):
        start = (matrix[:, 0] * i + offset)[:, None]
        points = plane + start
        inside = None
        if bool(((ends + start < 0) | (ends + start > last)).any()):
            inside = ((points >= 0) & (points <= last)).all(0)
            points.mul_(inside)
        yield points, points.floor(), inside


def affine_spline(
    volume: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """
    Cubic spline interpolation at ``matrix @ index + offset`` for every output index; zero outside the volume.

    Equals ``scipy.ndimage.affine_transform(order=3, mode="constant", cval=0)`` per channel. A diagonal matrix is
    computed axis by axis.

    Args:
        volume: ``(C, X, Y, Z)``, float32.
        matrix: ``(3, 3)``, float64.
        offset: ``(3,)``, float64, in voxels of ``volume``.
        size: three output sizes.

    Returns:
        ``(C, *size)``, float32.
    """
    if _is_diagonal(matrix):
        positions = [matrix[d, d] * torch.arange(size[d], dtype=torch.float64) + offset[d] for d in range(3)]
        return apply_along_axes(volume, [spline_matrix(p, n) for p, n in zip(positions, volume.shape[1:])])
    channels = len(volume)
    table, (step_x, step_y) = _coefficient_rows(volume)
    taps = torch.arange(4, dtype=torch.int32)
    taps = (taps[:, None] * step_x + taps * step_y).reshape(1, 16)
    spread_x, spread_y, spread_z = _weight_spreads(channels)
    channel_sum = torch.eye(channels).repeat_interleave(ROW, dim=1)
    out = volume.new_empty(channels, size[0], size[1] * size[2])
    powers = volume.new_ones(4, 3, out.shape[2])
    shifted_z, one_hot = volume.new_empty(STEP, 4, out.shape[2]), torch.eye(STEP)
    for i, (points, cell, inside) in enumerate(_planes(matrix, offset, size, volume.shape[1:])):
        first_x, first_y, first_z = cell.to(torch.int32)
        block = torch.div(first_z, STEP, rounding_mode="floor")
        rows = (first_x * step_x + first_y * step_y + block)[:, None] + taps
        # powers of the position in the cell, (4, P) per axis; a product with the spline's polynomials gives weights
        fraction = points.sub_(cell).to(volume.dtype)
        for degree in range(1, 4):
            torch.mul(powers[degree - 1], fraction, out=powers[degree])
        x, y, z = powers.unbind(1)
        weights = torch.mm(x.T, spread_x).mul_(torch.mm(y.T, spread_y))
        lines = torch.nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
        shift = one_hot.index_select(1, first_z - block * STEP)
        torch.mul(shift[:, None], z, out=shifted_z)
        torch.mm(channel_sum, lines.mul_(torch.mm(shifted_z.view(STEP * 4, -1).T, spread_z)).T, out=out[:, i])
        if inside is not None:
            out[:, i] *= inside
    return out.view(channels, *size)


def affine_linear(
    volume: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """
    Linear interpolation at ``matrix @ index + offset`` for every output index; the volume continues with zeros.

    Equals ``scipy.ndimage.affine_transform(order=1, mode="grid-constant")`` per channel, with coordinates in float32.
    It is what nnU-Net v2 does. Arguments and result as for :py:func:`affine_spline`.
    """
    positions = []  # of the output voxels, by one output axis after the other: (size[d], 3), for the corners -1 and 1
    scale = 2 / (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1).clamp(min=1)
    for axis, n in enumerate(size):
        steps = torch.arange(n, dtype=torch.float64)[:, None] * matrix[:, axis] * scale
        positions.append((steps + (offset * scale - 1 if axis == 0 else 0)).flip(1).to(volume.dtype))
    along_x, along_y, along_z = positions
    grid = along_x[:, None, None] + along_y[:, None] + along_z
    return torch.nn.functional.grid_sample(volume[None], grid[None], align_corners=True)[0]


@lru_cache(maxsize=8)
def _weight_spreads(channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return the matrices from powers of the position in a cell to the weights of all taps.

    Returns:
        ``(4, 16)`` for the first axis and for the second, whose elementwise product weighs the 16 rows, and
        ``(STEP * 4, channels * ROW)`` for the entries of a row, by the position of the first of the four taps.
    """
    # column k: the polynomial in t of the tap at k - 1 voxels from the cell's first corner
    spline = torch.tensor([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6
    row = torch.zeros(STEP, 4, ROW)
    for shift in range(STEP):
        row[shift, :, shift : shift + 4] = spline
    return spline.repeat_interleave(4, dim=1), spline.repeat(1, 4), row.view(STEP * 4, ROW).repeat(1, channels)


def affine_labels(
    labels: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, size: Sequence[int], outside: int = -1
) -> torch.Tensor:
    """
    Labels at ``matrix @ index + offset``: the label whose linearly interpolated indicator is at least 0.5.

    Of two labels at exactly 0.5 the larger is taken; if no label reaches 0.5, the result is 0. Voxels whose eight
    neighbors have the same label are not interpolated.

    Args:
        labels: ``(X, Y, Z)``, a signed integer type, every size at least 2.
        matrix: ``(3, 3)``, float64.
        offset: ``(3,)``, float64, in voxels of ``labels``.
        size: three output sizes.
        outside: value outside the volume. Defaults to -1.

    Returns:
        ``size``, in the dtype of ``labels``.
    """
    mixed = torch.iinfo(labels.dtype).min
    low = high = labels
    for axis in range(3):  # the smallest and largest label of the cell that starts at a voxel
        low, high = _with_next(torch.minimum, low, axis), _with_next(torch.maximum, high, axis)
    cells = torch.where(low == high, low, mixed)
    if _is_diagonal(matrix):
        return _scaled_labels(labels, cells, matrix.diag(), offset, size, outside)
    strides = torch.tensor([labels.shape[1] * labels.shape[2], labels.shape[2], 1], dtype=torch.float64)
    out = labels.new_empty(size[0], size[1] * size[2])
    for i, (_, cell, inside) in enumerate(_planes(matrix, offset, size, labels.shape)):
        out[i] = torch.take(cells, torch.mv(cell.T, strides).to(torch.int64))
        if inside is not None:
            out[i].masked_fill_(~inside, outside)
    out = out.view(*size)
    where = (out == mixed).nonzero(as_tuple=True)
    points = matrix @ torch.stack(where).to(matrix) + offset[:, None]
    out[where] = _vote(labels, points.clamp_(min=0))  # inside, up to rounding
    return out


def _scaled_labels(
    labels: torch.Tensor,
    cells: torch.Tensor,
    step: torch.Tensor,
    offset: torch.Tensor,
    size: Sequence[int],
    outside: int,
) -> torch.Tensor:
    """:py:func:`affine_labels` for a diagonal matrix: cells are selected axis by axis."""
    positions, beyond = [], []
    for axis, n in enumerate(labels.shape):
        position = step[axis] * torch.arange(size[axis], dtype=torch.float64) + offset[axis]
        beyond.append((position < 0) | (position > n - 1))
        positions.append(position.clamp(0, n - 1))
    out = cells
    for axis, position in enumerate(positions):
        out = out.index_select(axis, position.long())
    where = (out == torch.iinfo(labels.dtype).min).nonzero(as_tuple=True)
    out[where] = _vote(labels, torch.stack([position[index] for position, index in zip(positions, where)]))
    out[beyond[0]] = outside
    out[:, beyond[1]] = outside
    out[:, :, beyond[2]] = outside
    return out


def _is_diagonal(matrix: torch.Tensor) -> bool:
    return bool((matrix == matrix.diag().diag()).all())


def _with_next(operation: Callable[..., torch.Tensor], values: torch.Tensor, axis: int) -> torch.Tensor:
    """Apply ``operation`` to each voxel and the next one along ``axis``; the last voxels are unchanged."""
    out = values.clone()
    n = values.shape[axis] - 1
    operation(values.narrow(axis, 0, n), values.narrow(axis, 1, n), out=out.narrow(axis, 0, n))
    return out


def _vote(labels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the label with a linear weight of at least 0.5 at ``points``, ``(3, K)``, inside the volume."""
    cell = points.floor()
    fraction = points - cell
    index = cell.to(torch.int64)
    last = [n - 1 for n in labels.shape]
    neighbors, weights = [], []
    for corner in product((0, 1), repeat=3):
        x, y, z = ((i + c).clamp_(max=n) for i, c, n in zip(index, corner, last))
        neighbors.append(torch.take(labels, (x * labels.shape[1] + y) * labels.shape[2] + z))
        x, y, z = (f if c else 1 - f for f, c in zip(fraction, corner))
        weights.append(x * y * z)
    winner = torch.zeros_like(neighbors[0])
    won = torch.zeros_like(winner, dtype=torch.bool)
    for label in neighbors:
        votes = torch.zeros_like(fraction[0])
        for other, weight in zip(neighbors, weights):
            votes.addcmul_(weight, (other == label).to(weight.dtype))
        # slightly below 0.5, since the sum of the weights is 1 only up to rounding
        better = (votes >= 0.5 - 1e-12) & (~won | (label > winner))
        winner = torch.where(better, label, winner)
        won |= better
    return winner
