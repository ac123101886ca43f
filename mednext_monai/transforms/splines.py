"""Exact interpolation of images and labels on the CPU, fast enough for every training patch.

Interpolation with scipy is one loop over all output voxels, 64 neighbours each. The same numbers come out faster by
two reformulations:

- Whatever acts axis by axis (scaling, Gaussian smoothing, lower resolution) is one small matrix per axis, and applying
  it is a matrix product, the spline's prefilter and its rule at the border included.
- A rotation is not separable. Its 16 in-plane neighbours per voxel are a weighted sum of table rows, which is what
  ``torch.nn.functional.embedding_bag`` computes; each row holds eight neighbouring coefficients along the last axis,
  of which the four needed get a weight.

Coordinates are computed in float64; image arithmetic is float32. Against scipy in float64 the images differ by some
1e-6 of the intensity range. Border rule: that of ``scipy.ndimage.map_coordinates(mode="constant")``, whose spline is
mirrored about the outermost voxel centres and whose value outside of them is the constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product

import torch

from ..memory import empty

__all__ = ["affine_labels", "affine_spline", "apply_along_axes", "spline_matrix"]

HALO = 10  # voxels after which a voxel's influence on spline coefficients has fallen to (2 - sqrt(3))^10 = 2e-6
SLAB, BLOCK = 8, 48  # rows of the prefilter's band taken together: first axis (to stay in cache), others (times ROW)
ROW, STEP = 8, 5  # neighbouring coefficients along the last axis in one table row; voxels from row to row
POLE = math.sqrt(3) - 2  # of the cubic spline's prefilter
REACH, TINY = 24, 1e-14  # voxels after which the prefilter's weight has fallen to 2e-14; smallest matrix entry kept


def cubic_bspline(distance: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline at ``distance`` voxels from its centre, any shape; non-zero for distances below 2."""
    distance = distance.abs()
    outer, inner = (2 - distance).clamp_(min=0), (1 - distance).clamp_(min=0)
    return (outer.pow(3) - inner.pow(3).mul_(4)).div_(6)


@lru_cache(maxsize=256)
def _prefilter(size: int) -> torch.Tensor:
    """
    The matrix ``(size, size)``, float64, from samples to cubic spline coefficients under mirrored borders.

    It inverts ``(c[i-1] + 4 c[i] + c[i+1]) / 6``: a coefficient is the sum of the samples, weighted by
    ``sqrt(3) * POLE ** distance``, continued beyond the border by mirroring.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    taps = torch.arange(-REACH, REACH + 1)
    weights = math.sqrt(3) * POLE ** taps.abs().double()
    index = _mirrored(torch.arange(size)[:, None] + taps, size)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, index, weights.expand(size, -1))


def spline_matrix(coordinates: torch.Tensor, size: int) -> torch.Tensor:
    """
    Cubic spline interpolation along one axis as a matrix.

    Args:
        coordinates: ``(n,)``, float64, positions in voxels; 0 is the first voxel's centre.
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
    return matrix.where(matrix.abs() > TINY, 0)  # changes nothing; denormal numbers would make products slow


def _mirrored(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices folded back into ``[0, size)`` by mirroring about the outermost voxel centres."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def apply_along_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """
    Multiply every line along each axis of ``volume`` by that axis' matrix.

    Args:
        volume: ``(..., *spatial)``, as many spatial dimensions as there are matrices.
        matrices: per spatial axis ``(out, in)``, or ``None`` where nothing happens.

    Returns:
        ``(..., *out)``, in the dtype of ``volume``; ``volume`` itself when every matrix is ``None``.
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
    The prefilter's rows ``indices``, beyond the border mirrored, as small dense products.

    Yields:
        the rows, the columns that they need, and the matrix of these rows and columns, for ``block`` rows at a time.
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
    The table for ``embedding_bag``: spline coefficients of ``(C, X, Y, Z)`` in rows of ``ROW`` along the last axis.

    Returns:
        ``(rows, C * ROW)``, and the numbers of rows per step along the first and second axis. Coordinate -1 of every
        axis comes first; beyond the border the coefficients are mirrored.
    """
    channels, x, y, z = volume.shape
    blocks = -(-z // STEP)
    along = torch.arange(blocks)[:, None] * STEP + torch.arange(-1, ROW - 1)
    bands_y = list(_bands(torch.arange(-1, y + 2), y, BLOCK, volume.dtype))
    spreads_z = []  # per channel, the band between columns of zeros, so that products land where they belong in a row
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
    The sampling positions ``matrix @ index + offset`` of one output plane after the other.

    Yields:
        the points and the first corners of the cells that they lie in, each ``(3, P)``, float64, with ``P = size[1] *
        size[2]``, and which points lie within a volume of ``shape``, ``(P,)``, or ``None`` when all do. A point
        outside is replaced by the first voxel.
    """
    rows = torch.arange(size[1], dtype=torch.float64)[:, None] * matrix[:, 1, None, None]
    columns = torch.arange(size[2], dtype=torch.float64) * matrix[:, 2, None, None]
    plane = (rows + columns).reshape(3, -1)
    ends = plane[:, [0, size[2] - 1, -size[2], -1]]  # an affine map's extremes lie at the corners
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


@lru_cache(maxsize=8)
def _weight_spreads(channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Matrices from powers of the position in a cell to the weights of all taps.

    Returns:
        ``(4, 16)`` for the first axis and for the second, whose elementwise product weighs the 16 rows, and
        ``(STEP * 4, channels * ROW)`` for the entries of a row, by where in the row the four taps begin.
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
    Labels at ``matrix @ index + offset``: per label a linear interpolation of its indicator, won at 0.5 or more.

    Of two labels at exactly 0.5 the larger wins; a voxel that no label wins becomes 0. Where all eight neighbours
    carry one label nothing is interpolated.

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
    for axis in range(3):  # the least and greatest label of the cell that begins at a voxel
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
    """:py:func:`affine_labels` for a diagonal matrix: cells are picked axis by axis."""
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
    """``operation`` on every voxel and its neighbour one further along ``axis``; the last voxels stay."""
    out = values.clone()
    n = values.shape[axis] - 1
    operation(values.narrow(axis, 0, n), values.narrow(axis, 1, n), out=out.narrow(axis, 0, n))
    return out


def _vote(labels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The label with a linear weight of at least 0.5 at each of ``points``, ``(3, K)``, which lie inside the volume."""
    cell = points.floor()
    fraction = points - cell
    index = cell.to(torch.int64)
    last = [n - 1 for n in labels.shape]
    neighbours, weights = [], []
    for corner in product((0, 1), repeat=3):
        x, y, z = ((i + c).clamp_(max=n) for i, c, n in zip(index, corner, last))
        neighbours.append(torch.take(labels, (x * labels.shape[1] + y) * labels.shape[2] + z))
        x, y, z = (f if c else 1 - f for f, c in zip(fraction, corner))
        weights.append(x * y * z)
    winner = torch.zeros_like(neighbours[0])
    won = torch.zeros_like(winner, dtype=torch.bool)
    for label in neighbours:
        votes = torch.zeros_like(fraction[0])
        for other, weight in zip(neighbours, weights):
            votes.addcmul_(weight, (other == label).to(weight.dtype))
        # a hair below 0.5: the sum of the weights is 1 only up to rounding
        better = (votes >= 0.5 - 1e-12) & (~won | (label > winner))
        winner = torch.where(better, label, winner)
        won |= better
    return winner
