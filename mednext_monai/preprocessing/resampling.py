"""Resampling to another grid over the same physical extent, as the original MedNeXt (nnU-Net v1) does it.

A grid of ``n`` voxels and one of ``m`` voxels cover the same extent: output voxel ``i`` lies at input coordinate
``(i + 1/2) n/m - 1/2``, and the nearest border voxel continues the image outside. Images are interpolated by cubic
splines and clipped to their input range; label maps by linear weights of every label, of which the largest wins. Labels
of equal weight are common (every boundary voxel, when an even factor shrinks the grid): then the label of the nearest
voxel wins if it is one of them, else the lowest, as in batchgenerators 0.25.5. When one axis is over three times as
coarse as the finest, it is *separate*: slices are resampled in their plane, and along that axis the nearest is taken.

The original calls ``skimage.transform.resize``, which is ``scipy.ndimage.zoom``. Both are tensor products of
one-dimensional interpolations, so here each axis is one product with a banded matrix: the same values, several times
faster. Label maps and probabilities are done in slabs, one class at a time and only where it has weight, so that the
memory needed beyond input and output does not grow with the number of classes.

Nothing here depends on the order of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

__all__ = [
    "ANISOTROPY_THRESHOLD",
    "resample_image",
    "resample_labels",
    "resample_to_labels",
    "resampled_shape",
    "separate_axis",
]

ANISOTROPY_THRESHOLD = 3  # coarsest over finest spacing above which the coarsest axis is resampled separately
BLOCK = 64  # output indices per matrix product: narrow enough to use the band of the matrix
SLAB_VOXELS = 2**22  # output voxels per slab for label maps and probabilities: 32 MiB in float64


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> tuple[int, ...]:
    """Voxels per axis at the target spacing over the same extent: rounded, halves to even, and at least 1.

    Args:
        shape: voxels per spatial axis.
        spacing: mm per voxel and axis.
        target_spacing: mm per voxel and axis wanted. Defaults to 1 mm, as published.

    Raises:
        ValueError: if a spacing is not a positive number or the lengths differ.
    """
    for name, values in (("spacing", spacing), ("target_spacing", target_spacing)):
        if len(values) != len(shape) or not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{name} must be {len(shape)} positive numbers (mm), got {tuple(values)}.")
    ratio = np.asarray(spacing, dtype=np.float64) / np.asarray(target_spacing, dtype=np.float64)
    return tuple(max(int(count), 1) for count in np.round(ratio * np.asarray(shape)))


def separate_axis(spacing: Sequence[float], target_spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> int | None:
    """
    The axis to resample separately, or ``None``.

    It is the coarsest axis of the original spacing (mm) when that is more than ``ANISOTROPY_THRESHOLD`` times the
    finest; otherwise that of the target spacing by the same rule. No axis when two are equally coarse. Differences
    below 1e-5 do not count: spacings that come from the columns of a rotated affine carry its rounding.
    """
    for candidate in (spacing, target_spacing):
        if max(candidate) / min(candidate) > ANISOTROPY_THRESHOLD * (1 + 1e-5):
            coarsest = [
                axis for axis, value in enumerate(candidate) if math.isclose(value, max(candidate), rel_tol=1e-5)
            ]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(image: np.ndarray, shape: Sequence[int], axis: int | None = None, order: int = 3) -> np.ndarray:
    """
    Resample an image over the same extent, channel by channel.

    Args:
        image: ``(C, X, Y, Z)``; NaN becomes 0.
        shape: voxels per spatial axis wanted.
        axis: the axis to resample separately, nearest along it; see ``separate_axis``. Defaults to ``None``.
        order: 3 cubic, clipped to the range of the channel (of the slice, when an axis is separate); 1 linear.
            Defaults to 3.

    Returns:
        float32 ``(C, *shape)``; the image itself (as float32, NaN replaced) when the shape is unchanged.

    Raises:
        ValueError: if the image holds infinite values or the shape does not fit.
    """
    shape = _checked_shape(image.shape[1:], shape)
    image = np.asarray(image, dtype=np.float32)
    if not np.isfinite(image).all():
        if np.isinf(image).any():
            raise ValueError("the image holds infinite values.")
        image = np.nan_to_num(image, nan=0.0)
    if image.shape[1:] == shape:
        return image
    result = np.empty((image.shape[0], *shape), dtype=np.float32)
    for channel, out in zip(image, result):
        out[...] = _resample_channel(channel, shape, axis, order)
    return result


def resample_labels(labels: np.ndarray, shape: Sequence[int], axis: int | None = None) -> np.ndarray:
    """
    Resample a label map over the same extent: the label with the largest linear weight wins.

    Among labels of equal weight (in float32, so that the rounding of float64 decides nothing) the label of the nearest
    voxel wins if it is one of them, else the lowest.

    Args:
        labels: integers ``(X, Y, Z)``; -1 is a label like any other.
        shape: voxels per spatial axis wanted.
        axis: the axis to resample separately, nearest along it; see ``separate_axis``. Defaults to ``None``.

    Returns:
        an array ``shape`` of the type of ``labels``; ``labels`` itself when the shape is unchanged.

    Raises:
        ValueError: if the labels are no integers or the shape does not fit.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    shape = _checked_shape(labels.shape, shape)
    if labels.shape == shape:
        return labels
    labels, plane_shape, picks = _split_axis(labels, shape, axis)
    result = np.empty(plane_shape, dtype=labels.dtype)
    indices = [_nearest(old, new) for old, new in zip(labels.shape, plane_shape)]
    for rows, columns, weights in _slabs(labels.shape, plane_shape):
        nearest = labels[np.ix_(indices[0][rows], *indices[1:])]
        _largest_label(labels[columns], weights, nearest, result[rows])
    return result if picks is None else result.take(picks, axis=axis)


def resample_to_labels(probabilities: np.ndarray, shape: Sequence[int], axis: int | None = None) -> np.ndarray:
    """
    Resample class probabilities linearly and take the class with the largest, without storing them all resampled.

    The values compared are those of :py:func:`resample_image` with ``order=1``, in float32.

    Args:
        probabilities: ``(K, X, Y, Z)``, class 0 is the background; any numbers that grow with the probability.
        shape: voxels per spatial axis wanted.
        axis: the axis to resample separately, nearest along it; see ``separate_axis``. Defaults to ``None``.

    Returns:
        class indices ``shape``: uint8, or int16 above 256 classes. Ties go to the lower class.

    Raises:
        ValueError: if there are fewer than two classes or the shape does not fit.
    """
    if len(probabilities) < 2:
        raise ValueError(f"probabilities must have at least 2 classes as their first axis, got {len(probabilities)}.")
    shape = _checked_shape(probabilities.shape[1:], shape)
    probabilities, plane_shape, picks = _split_axis(probabilities, shape, axis)
    result = np.empty(plane_shape, dtype=np.uint8 if len(probabilities) <= 256 else np.int16)
    order = _axis_order(probabilities.shape[1:], plane_shape)
    for rows, columns, weights in _slabs(probabilities.shape[1:], plane_shape):
        out = result[rows]
        out[...] = 0
        largest = _apply(probabilities[0, columns].astype(np.float32), weights, order)
        for index in range(1, len(probabilities)):
            values = _apply(probabilities[index, columns].astype(np.float32), weights, order)
            out[values > largest] = index
            np.maximum(largest, values, out=largest)
    return result if picks is None else result.take(picks, axis=axis)


def _checked_shape(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    if len(old) != len(new) or min(*old, *new) < 1:
        raise ValueError(f"shape must be {len(old)} positive numbers for an array of {tuple(old)}, got {tuple(new)}.")
    return tuple(int(count) for count in new)


def _split_axis(
    array: np.ndarray, shape: tuple[int, ...], axis: int | None
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray | None]:
    """
    Take the separate axis out of the work: slices that are not needed are dropped before the resampling in the plane,
    slices that are needed several times are repeated after it.

    Returns:
        the array (last axes spatial), the shape to resample it to, and the slices to take from the result, if any.
    """
    if axis is None:
        return array, shape, None
    array_axis = array.ndim - len(shape) + axis
    old, new = array.shape[array_axis], shape[axis]
    picks = _nearest(old, new)
    if new < old:
        return array.take(picks, axis=array_axis), shape, None
    return array, (*shape[:axis], old, *shape[axis + 1 :]), None if new == old else picks


def _nearest(old: int, new: int) -> np.ndarray:
    """Index of the input voxel nearest to each output voxel; halfway, the one after."""
    positions = old / new * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(positions + 0.5).astype(np.intp), 0, old - 1)


@lru_cache(maxsize=64)
def _weights(old: int, new: int, order: int) -> np.ndarray | None:
    """
    Interpolation along one axis as a matrix ``(new, old)``, float64: ``scipy.ndimage.zoom`` of every unit vector.

    Entries below 1e-12 are dropped: they are the far tail of the spline's prefilter, less than the rounding of float32.
    ``None`` when the axis keeps its size, where the interpolation is the identity.
    """
    if old == new:
        return None
    weights = np.empty((new, old))
    for index, unit in enumerate(np.eye(old)):
        weights[:, index] = ndimage.zoom(unit, new / old, order=order, mode="nearest", grid_mode=True)
    weights[np.abs(weights) < 1e-12] = 0
    weights.setflags(write=False)
    return weights


def _support(weights: np.ndarray, axis: int) -> slice:
    """From the first to the last index along ``axis`` at which the matrix has any weight."""
    indices = np.flatnonzero(weights.any(axis=1 - axis))
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _axis_order(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The axes in the order in which they are resampled: those that shrink the array most first."""
    return sorted(range(len(old)), key=lambda axis: new[axis] / old[axis])


def _apply(array: np.ndarray, weights: Sequence[np.ndarray | None], order: Sequence[int]) -> np.ndarray:
    """Apply one matrix (or ``None``) per axis, in this order of the axes; keeps the array's type."""
    for axis in order:
        matrix = weights[axis]
        if matrix is not None:
            array = _apply_along(array, matrix, axis)
    return array


def _apply_along(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Matrix times array along one axis: float64 products over the band of the matrix, stored in the array's type."""
    before, after = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    source = array.reshape(before, array.shape[axis], after)
    result = np.empty((before, len(weights), after), dtype=array.dtype)
    for start in range(0, len(weights), BLOCK):
        rows = weights[start : start + BLOCK]
        columns = _support(rows, axis=1)
        rows, piece = rows[:, columns], source[:, columns].astype(np.float64, copy=False)
        if after == 1:
            result[:, start : start + BLOCK, 0] = piece[:, :, 0] @ rows.T
        else:
            result[:, start : start + BLOCK] = rows @ piece
    return result.reshape(*array.shape[:axis], len(weights), *array.shape[axis + 1 :])


def _resample_channel(channel: np.ndarray, shape: tuple[int, ...], axis: int | None, order: int) -> np.ndarray:
    """One channel ``(X, Y, Z)`` in float32, clipped to its range, or to that of each slice across a separate axis."""
    channel, plane_shape, picks = _split_axis(channel, shape, axis)
    weights = [_weights(old, new, order) for old, new in zip(channel.shape, plane_shape)]
    values = _apply(channel, weights, _axis_order(channel.shape, plane_shape))
    others = tuple(other for other in range(channel.ndim) if other != axis)
    low, high = (reduce(axis=others, keepdims=True) for reduce in (channel.min, channel.max))
    values = np.clip(values, low, high)
    return values if picks is None else values.take(picks, axis=axis)


def _slabs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice, list[np.ndarray | None]]]:
    """
    Cut linear resampling into slabs along the first axis.

    Yields:
        output indices, the input indices they depend on, and the matrices from that input to that output.
    """
    first, *others = (_weights(before, after, 1) for before, after in zip(old, new))
    height = max(SLAB_VOXELS // math.prod(new[1:]), 1)
    for start in range(0, new[0], height):
        rows = slice(start, min(start + height, new[0]))
        if first is None:
            yield rows, rows, [None, *others]
        else:
            columns = _support(first[rows], axis=1)
            yield rows, columns, [first[rows, columns], *others]


def _largest_label(
    labels: np.ndarray, weights: Sequence[np.ndarray | None], nearest: np.ndarray, out: np.ndarray
) -> None:
    """Write into ``out`` the label with the largest weight (equal: ``nearest``), each looked at only where it reaches.

    Args:
        labels: the label map ``(X, Y, Z)``, or a slab of it.
        weights: one matrix or ``None`` per axis, from ``labels`` to ``out``.
        nearest: the label of the nearest voxel, of the shape of ``out``.
        out: written to.
    """
    lowest = int(labels.min())
    boxes = ndimage.find_objects(labels.astype(np.int32) - (lowest - 1))
    out[...] = lowest
    if len(boxes) == 1:
        return
    largest, of_nearest = np.zeros((2, *out.shape), dtype=np.float32)
    for label, box in enumerate(boxes, start=lowest):
        if box is None:
            continue
        columns = [None if matrix is None else matrix[:, part] for matrix, part in zip(weights, box)]
        reach = tuple(part if matrix is None else _support(matrix, axis=0) for matrix, part in zip(columns, box))
        block = [None if matrix is None else matrix[part] for matrix, part in zip(columns, reach)]
        order = _axis_order(*zip(*((1, 1) if matrix is None else matrix.shape[::-1] for matrix in block)))
        values = _apply((labels[box] == label).astype(np.float64), block, order).astype(np.float32)
        out[reach][values > largest[reach]] = label
        np.maximum(largest[reach], values, out=largest[reach])
        is_nearest = nearest[reach] == label
        of_nearest[reach][is_nearest] = values[is_nearest]
    np.copyto(out, nearest, where=of_nearest == largest)
