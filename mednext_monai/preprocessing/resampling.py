"""Resampling to another grid of the same physical extent, as in the original MedNeXt (nnU-Net v1).

Grids of ``n`` input and ``m`` output voxels cover the same extent: output voxel ``i`` is at input coordinate
``(i + 1/2) n/m - 1/2``, and the image is extended by its border voxels. Images are interpolated with cubic splines and
clipped to their input range. Label maps take the label with the largest linear weight. Equal weights are common (at all
boundary voxels, if the grid shrinks by an even factor): then the label of the nearest voxel is taken if it is one of
them, else the lowest, as in batchgenerators 0.25.5. If the coarsest spacing is more than three times the finest, its
axis is *separate*: slices are resampled in their plane, with nearest-neighbor sampling across slices.

The original calls ``skimage.transform.resize``, which uses ``scipy.ndimage.zoom``, a tensor product of one-dimensional
interpolations. Here each axis is a product with a banded matrix, which gives the same values several times faster.
Label maps and probabilities are processed in slabs, one class at a time and only where it has weight, so the additional
memory does not grow with the number of classes.

Nothing here depends on the order of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

__all__ = [
    "ANISOTROPY_THRESHOLD",
    "STREAM_VOXELS",
    "Slab",
    "class_type",
    "classes_by_slab",
    "filled_spacing",
    "most_probable",
    "resample_image",
    "resample_labels",
    "resample_to_labels",
    "resampled_shape",
    "separate_axis",
]

ANISOTROPY_THRESHOLD = 3  # coarsest over finest spacing above which the coarsest axis is resampled separately
BLOCK = 64  # output indices per matrix product: narrow enough to use the band of the matrix
SLAB_VOXELS = 2**22  # output voxels per slab for label maps and probabilities: 32 MiB in float64
STREAM_VOXELS = 2**24  # output voxels of all classes per slab of a stream, whose planes are held for all classes


def filled_spacing(spacing: Sequence[float], target_spacing: Sequence[float | None]) -> list[float]:
    """Return the target spacing of a case, with the case's own where it is ``None``."""
    return [own if target is None else target for own, target in zip(spacing, target_spacing, strict=True)]


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float | None] = (1.0, 1.0, 1.0)
) -> tuple[int, ...]:
    """Return the voxels per axis at the target spacing over the same extent: rounded half to even, at least 1.

    Args:
        shape: voxels per spatial axis.
        spacing: mm per voxel and axis.
        target_spacing: target mm per voxel and axis; ``None`` for an axis that is not resampled. Defaults to 1 mm, as
            published.

    Raises:
        ValueError: if a spacing is not a positive number or the lengths differ.
    """
    if len(spacing) == len(target_spacing):
        target_spacing = filled_spacing(spacing, target_spacing)
    for name, values in (("spacing", spacing), ("target_spacing", target_spacing)):
        if len(values) != len(shape) or not all(value and math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{name} must be {len(shape)} positive numbers (mm), got {tuple(values)}.")
    ratio = np.asarray(spacing, dtype=np.float64) / np.asarray(target_spacing, dtype=np.float64)
    return tuple(max(int(count), 1) for count in np.round(ratio * np.asarray(shape)))


def separate_axis(spacing: Sequence[float], target_spacing: Sequence[float | None] = (1.0, 1.0, 1.0)) -> int | None:
    """
    Return the axis to resample separately, or ``None``.

    This is the coarsest axis of the original spacing (mm) if it is more than ``ANISOTROPY_THRESHOLD`` times the finest,
    otherwise that of the target spacing by the same rule. There is none if two axes are equally coarse. Relative
    differences below 1e-5 are ignored, since the spacing of a rotated affine has rounding errors.
    """
    for candidate in (spacing, filled_spacing(spacing, target_spacing)):
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
        shape: target voxels per spatial axis.
        axis: axis to resample separately (nearest neighbor), see :py:func:`separate_axis`. Defaults to ``None``.
        order: 3 for cubic interpolation, clipped to the range of the channel (of the slice, if an axis is separate); 1
            for linear. Defaults to 3.

    Returns:
        float32 ``(C, *shape)``; the image itself (as float32, NaN replaced) if the shape is unchanged.

    Raises:
        ValueError: if the image has infinite values or ``shape`` is invalid.
    """
    shape = _checked_shape(image.shape[1:], shape)
    image = np.asarray(image, dtype=np.float32)
    if not np.isfinite(image).all():
        if np.isinf(image).any():
            raise ValueError("the image contains infinite values.")
        image = np.nan_to_num(image, nan=0.0)
    if image.shape[1:] == shape:
        return image
    result = np.empty((image.shape[0], *shape), dtype=np.float32)
    for channel, out in zip(image, result):
        out[...] = _resample_channel(channel, shape, axis, order)
    return result


def resample_labels(labels: np.ndarray, shape: Sequence[int], axis: int | None = None) -> np.ndarray:
    """
    Resample a label map over the same extent: take the label with the largest linear weight.

    Among labels of equal weight (compared in float32, to ignore rounding errors of float64), the label of the nearest
    voxel is taken if it is one of them, else the lowest.

    Args:
        labels: integers ``(X, Y, Z)``; -1 is a label like any other.
        shape: target voxels per spatial axis.
        axis: axis to resample separately (nearest neighbor), see :py:func:`separate_axis`. Defaults to ``None``.

    Returns:
        an array of shape ``shape`` and the type of ``labels``; ``labels`` itself if the shape is unchanged.

    Raises:
        ValueError: if the labels are not integers or ``shape`` is invalid.
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
    Resample class probabilities linearly and take the most probable class, without storing all resampled classes.

    The values compared are those of :py:func:`resample_image` with ``order=1``, in float32.

    Args:
        probabilities: ``(K, X, Y, Z)``, class 0 is the background; any values that increase with the probability.
        shape: target voxels per spatial axis.
        axis: axis to resample separately (nearest neighbor), see :py:func:`separate_axis`. Defaults to ``None``.

    Returns:
        class indices of shape ``shape``: uint8, or int16 for more than 256 classes. Ties give the lower class.

    Raises:
        ValueError: if there are fewer than two classes or ``shape`` is invalid.
    """
    if len(probabilities) < 2:
        raise ValueError(f"probabilities must have at least 2 classes as their first axis, got {len(probabilities)}.")
    shape = _checked_shape(probabilities.shape[1:], shape)
    along = 1 if axis == 0 else 0
    result = np.empty(shape, dtype=class_type(len(probabilities)))
    before = (slice(None),) * along

    def read(planes: slice) -> np.ndarray:
        return probabilities[(slice(None), *before, planes)]

    for slab in classes_by_slab(read, probabilities.shape[1:], shape, axis, along):
        result[(*before, slab.rows)] = slab.whole(most_probable(slab.classes))
    return result


def class_type(classes: int) -> type[np.uint8] | type[np.int16]:
    """Return the type of a class map: uint8, or int16 for more than 256 classes."""
    return np.uint8 if classes <= 256 else np.int16


def most_probable(classes: Iterable[np.ndarray]) -> np.ndarray:
    """
    Return the index of the largest value at each voxel, int16; ties give the lower index.

    Args:
        classes: the values of one class after the other, arrays of one shape. The first one is overwritten.

    Raises:
        ValueError: if there is no class.
    """
    arrays = iter(classes)
    largest = next(arrays, None)
    if largest is None:
        raise ValueError("there must be at least one class.")
    labels = np.zeros_like(largest, dtype=np.int16)  # in the memory order of the values
    is_larger = np.empty_like(largest, dtype=bool)
    for index, values in enumerate(arrays, start=1):
        np.greater(values, largest, out=is_larger)
        np.copyto(labels, np.int16(index), where=is_larger)
        np.maximum(largest, values, out=largest)
    return labels


class Slab(NamedTuple):
    """
    Resampled class probabilities in some planes.

    Attributes:
        rows: the planes, output indices along the axis of the slabs.
        classes: the values of one class after the other, float32, each computed when it is requested. Of a separate
            axis along which the image is enlarged, only the slices of the input.
        whole: function that repeats these slices in any array of this shape; of other arrays, it returns the array.
    """

    rows: slice
    classes: Iterator[np.ndarray]
    whole: Callable[[np.ndarray], np.ndarray]


def classes_by_slab(
    read: Callable[[slice], np.ndarray],
    old: Sequence[int],
    new: Sequence[int],
    axis: int | None,
    along: int,
    voxels: int = SLAB_VOXELS,
) -> Iterator[Slab]:
    """
    Resample class probabilities, of which only some planes are available at a time.

    Interpolation is linear and the weights of a voxel sum to 1, so that probabilities that sum to 1 still do, up to
    rounding.

    Args:
        read: function of a range of input planes along ``along`` that returns them as ``(K, ...)``; the starts and ends
            of the ranges do not decrease.
        old: input voxels per axis.
        new: output voxels per axis.
        axis: axis to resample separately (nearest neighbor), other than ``along``, or ``None``.
        along: axis of the slabs.
        voxels: output voxels per slab. Defaults to ``SLAB_VOXELS``.

    Yields:
        consecutive slabs. The classes of one must be requested before the next one is.

    Raises:
        ValueError: if ``along`` is the separate axis.
    """
    if axis == along:
        raise ValueError(f"along must differ from the separate axis, got {along} for both.")
    old, new = list(old), list(new)
    dropped = repeated = None  # slices to take of a separate axis, before or after the others are resampled
    if axis is not None and new[axis] < old[axis]:
        dropped, old[axis] = _nearest(old[axis], new[axis]), new[axis]
    elif axis is not None and new[axis] > old[axis]:
        repeated, new[axis] = _nearest(old[axis], new[axis]), old[axis]
    # The few planes of a slab come first in memory: products along the other axes are then of large matrices.
    first = [along, *(other for other in range(len(old)) if other != along)]
    order = _axis_order([old[other] for other in first], [new[other] for other in first])

    def resampled(planes: np.ndarray, weights: Sequence[np.ndarray | None]) -> Iterator[np.ndarray]:
        for values in planes:
            values = values if dropped is None else values.take(dropped, axis=axis)
            values = np.moveaxis(values, along, 0).astype(np.float32, order="C")
            yield np.moveaxis(_apply(values, [weights[other] for other in first], order), 0, along)

    def whole(array: np.ndarray) -> np.ndarray:
        return array if repeated is None else array.take(repeated, axis=axis)

    for rows, columns, weights in _slabs(old, new, along, voxels):
        yield Slab(rows, resampled(read(columns), weights), whole)


def _checked_shape(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    if len(old) != len(new) or min(*old, *new) < 1:
        raise ValueError(f"shape must be {len(old)} positive numbers for an array of {tuple(old)}, got {tuple(new)}.")
    return tuple(int(count) for count in new)


def _split_axis(
    array: np.ndarray, shape: tuple[int, ...], axis: int | None
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray | None]:
    """
    Handle the separate axis: drop unused slices before the in-plane resampling, or repeat slices after it.

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
    """Return the index of the input voxel nearest to each output voxel; halfway, the following one."""
    positions = old / new * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(positions + 0.5).astype(np.intp), 0, old - 1)


@lru_cache(maxsize=64)
def _weights(old: int, new: int, order: int) -> np.ndarray | None:
    """
    Return interpolation along an axis as a matrix ``(new, old)``, float64: ``scipy.ndimage.zoom`` of each unit vector.

    Entries below 1e-12, the far tail of the spline's prefilter, are dropped; they are below the precision of float32.
    Returns ``None`` if the size is unchanged, where the interpolation is the identity.
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
    """Return the range of indices along ``axis`` that contains all nonzero entries of the matrix."""
    indices = np.flatnonzero(weights.any(axis=1 - axis))
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _axis_order(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """Return the axes in resampling order: those that shrink the array most come first."""
    return sorted(range(len(old)), key=lambda axis: new[axis] / old[axis])


def _apply(array: np.ndarray, weights: Sequence[np.ndarray | None], order: Sequence[int]) -> np.ndarray:
    """Apply one matrix (or ``None``) per axis, in the given order; the type of the array is kept."""
    for axis in order:
        matrix = weights[axis]
        if matrix is not None:
            array = _apply_along(array, matrix, axis)
    return array


def _apply_along(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Multiply matrix and array along an axis in float64, using the matrix band; the type of the array is kept."""
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
    """Resample a float32 channel ``(X, Y, Z)``; clip to its range, or to that of each slice of a separate axis."""
    channel, plane_shape, picks = _split_axis(channel, shape, axis)
    weights = [_weights(old, new, order) for old, new in zip(channel.shape, plane_shape)]
    values = _apply(channel, weights, _axis_order(channel.shape, plane_shape))
    others = tuple(other for other in range(channel.ndim) if other != axis)
    low, high = (reduce(axis=others, keepdims=True) for reduce in (channel.min, channel.max))
    values = np.clip(values, low, high, out=values if values is not channel else None)
    return values if picks is None else values.take(picks, axis=axis)


def _slabs(
    old: Sequence[int], new: Sequence[int], along: int = 0, voxels: int = SLAB_VOXELS
) -> Iterator[tuple[slice, slice, list[np.ndarray | None]]]:
    """
    Divide linear resampling into slabs along an axis.

    Yields:
        output indices, the input indices that they depend on, and the matrices from this input to this output.
    """
    weights = [_weights(before, after, 1) for before, after in zip(old, new)]
    matrix = weights[along]
    height = max(voxels * new[along] // math.prod(new), 1)
    for start in range(0, new[along], height):
        rows = slice(start, min(start + height, new[along]))
        columns = rows if matrix is None else _support(matrix[rows], axis=1)
        part = None if matrix is None else matrix[rows, columns]
        yield rows, columns, [*weights[:along], part, *weights[along + 1 :]]


def _largest_label(
    labels: np.ndarray, weights: Sequence[np.ndarray | None], nearest: np.ndarray, out: np.ndarray
) -> None:
    """Write the label with the largest weight (ties: ``nearest``) to ``out``, evaluating each label only in its reach.

    Args:
        labels: the label map ``(X, Y, Z)``, or a slab of it.
        weights: one matrix or ``None`` per axis, from ``labels`` to ``out``.
        nearest: the label of the nearest voxel, same shape as ``out``.
        out: the output array.
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
