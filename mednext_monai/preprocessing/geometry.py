"""The grid of a case before and after preprocessing, and the exact mapping back to the first.

Voxel ``i`` of an array is at ``affine @ (i, 1)`` in mm, as in NIfTI; the affine may contain rotation and translation. A
crop shifts the origin. Resampling over the same extent scales by old over new voxel count and preserves the outer
borders.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from .nonzero import OUTSIDE, crop
from .resampling import (
    STREAM_VOXELS,
    Slab,
    class_type,
    classes_by_slab,
    filled_spacing,
    most_probable,
    resample_image,
    resample_labels,
    resample_to_labels,
    resampled_shape,
    separate_axis,
)

__all__ = [
    "Box",
    "Geometry",
    "Keep",
    "keep_slabs",
    "oriented",
    "plan_geometry",
    "reorient",
    "restore_axes",
    "restore_image",
    "restore_labels",
    "restore_probabilities",
    "restore_slabs",
    "spacing_of",
]

MAX_EXTENT = 2**15 - 1  # voxels per axis that NIfTI-1 can hold
Box = tuple[slice, slice, slice]
Keep = Callable[[int, Box, np.ndarray], None]  # takes the values of a class, by its index, in a box of the volume


@dataclass(frozen=True)
class Geometry:
    """
    Relation between the grid of a preprocessed case and that of its file, as plain numbers that JSON can represent.

    Attributes:
        shape: voxels per axis of the file.
        affine: ``(4, 4)``, voxel index to mm, of the file.
        start: first voxel of the crop along each axis.
        stop: one past the last voxel of the crop along each axis.
        resampled_shape: voxels per axis after resampling the crop.
        axis: the axis that is resampled separately (nearest neighbor along it), or ``None``.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    resampled_shape: tuple[int, ...]
    axis: int | None

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Voxels per axis of the crop, before resampling."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop))

    @property
    def changed_axis(self) -> int | None:
        """The axis that is resampled separately, if its slices are not all kept as they are."""
        axis = self.axis
        return None if axis is None or self.resampled_shape[axis] == self.cropped_shape[axis] else axis

    @property
    def resampled_affine(self) -> np.ndarray:
        """4×4 float64: voxel index to mm after crop and resampling."""
        cropped = np.asarray(self.affine) @ _cropping_matrix(self.start)
        return cropped @ _resampling_matrix(self.cropped_shape, self.resampled_shape)

    def to_dict(self) -> dict:
        """Return the attributes as a dictionary of plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> Geometry:
        """Inverse of ``to_dict``, also after a round trip through JSON."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**{**values, "affine": tuple(tuple(row) for row in values["affine"])})


def plan_geometry(
    shape: Sequence[int],
    affine: np.ndarray,
    start: Sequence[int],
    stop: Sequence[int],
    target_spacing: Sequence[float | None] = (1.0, 1.0, 1.0),
) -> Geometry:
    """
    Return the geometry of a case that is cropped to a box and resampled to the target spacing in mm.

    An axis whose target spacing is ``None`` is not resampled.

    Raises:
        ValueError: if a spacing is not a positive number, or the resampled case could not be held in memory.
    """
    spacing = spacing_of(affine)
    cropped = [high - low for low, high in zip(start, stop)]
    resampled = resampled_shape(cropped, spacing, target_spacing)
    _check_size(resampled, spacing, filled_spacing(spacing, target_spacing))
    return Geometry(
        shape=tuple(int(count) for count in shape),
        affine=tuple(tuple(float(value) for value in row) for row in np.asarray(affine)),
        start=tuple(start),
        stop=tuple(stop),
        resampled_shape=resampled,
        axis=separate_axis(spacing, target_spacing),
    )


def _check_size(shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float]) -> None:
    """Refuse a resampled case that is too large, as of an image that states its spacing in a wrong unit."""
    size = 4 * math.prod(shape)  # bytes of a channel
    if max(shape) > MAX_EXTENT or size > _installed_memory():
        old, new = (" x ".join(f"{value:.4g}" for value in values) for values in (spacing, target_spacing))
        raise ValueError(
            f"with a spacing of {old} mm, resampled to {new} mm, it would have {' x '.join(map(str, shape))} voxels, "
            f"{size / 2**30:.3g} GiB per channel: more than the memory of this computer, or than {MAX_EXTENT} along an "
            "axis. Is the unit of length right?"
        )


def _installed_memory() -> float:
    """Return the memory of this computer in bytes; infinite where the system does not say it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """
    Return the voxel spacing in mm: the lengths of the columns of the affine.

    Values are rounded to float32, the precision of a NIfTI header, so that the number of voxels after resampling does
    not depend on rounding errors of the affine.
    """
    affine = np.asarray(affine, dtype=np.float64)
    return tuple(float(np.float32(length)) for length in np.linalg.norm(affine[:-1, :-1], axis=0))


def reorient(array: np.ndarray, affine: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Reorder and flip the axes to an orientation, without interpolation.

    Args:
        array: ``(C, X, Y, Z)``.
        affine: ``(4, 4)``, voxel index to mm.
        axcodes: direction of each axis, such as ``"RAS"``: right, anterior, superior.

    Returns:
        the array, contiguous, and its affine.
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    moved = np.ascontiguousarray(oriented(array, affine, axcodes))
    return moved, affine @ inv_ornt_aff(change, array.shape[1:])


def oriented(array: np.ndarray, affine: np.ndarray, axcodes: str) -> np.ndarray:
    """
    Return what :py:func:`reorient` does with an array as a view of it: what is written to it is written to the array.

    Args:
        array, affine, axcodes: as for :py:func:`reorient`.
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    return np.moveaxis(apply_orientation(np.moveaxis(array, 0, -1), change), -1, 0)


def restore_axes(array: np.ndarray, affine: np.ndarray, axcodes: str) -> np.ndarray:
    """
    Undo :py:func:`reorient`.

    Args:
        array: ``(C, X, Y, Z)``, reoriented to ``axcodes``.
        affine: ``(4, 4)``, voxel index to mm, of the array before it was reoriented.
        axcodes: the orientation of ``array``.

    Returns:
        the array with its original axis order and directions, contiguous.
    """
    change = ornt_transform(axcodes2ornt(axcodes), io_orientation(affine))
    return np.ascontiguousarray(np.moveaxis(apply_orientation(np.moveaxis(array, 0, -1), change), -1, 0))


def _cropping_matrix(start: Sequence[int]) -> np.ndarray:
    """``(4, 4)``: index in a crop that starts at voxel ``start`` to index in the full array."""
    matrix = np.eye(len(start) + 1)
    matrix[:-1, -1] = start
    return matrix


def _resampling_matrix(old_shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """``(4, 4)``: index after resampling over the same extent to index before, ``(i + 1/2) old/new - 1/2`` per axis."""
    factor = np.asarray(old_shape, dtype=np.float64) / np.asarray(new_shape)
    matrix = np.diag([*factor, 1.0])
    matrix[:-1, -1] = factor / 2 - 0.5
    return matrix


def restore_image(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """
    Resample an image or probabilities linearly from the preprocessed grid to that of the file; 0 outside the crop.

    Args:
        image: ``(C, *geometry.resampled_shape)``.
        geometry: geometry of the case.

    Returns:
        float32 ``(C, *geometry.shape)``.

    Raises:
        ValueError: if the shape differs from that of the preprocessed case.
    """
    _check_shape(image.shape[1:], geometry)
    return _into_volume(resample_image(image, geometry.cropped_shape, geometry.axis, order=1), geometry)


def restore_labels(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """
    Resample a label map from the preprocessed grid to that of the file; 0 outside the crop and for ``OUTSIDE`` (-1).

    Args:
        labels: integers, shape ``geometry.resampled_shape``.
        geometry: geometry of the case.

    Returns:
        an array of shape ``geometry.shape`` and the type of ``labels``.

    Raises:
        ValueError: if the shape differs from that of the preprocessed case.
    """
    _check_shape(labels.shape, geometry)
    labels = resample_labels(labels, geometry.cropped_shape, geometry.axis)
    return _into_volume(np.where(labels == OUTSIDE, labels.dtype.type(0), labels), geometry)


def restore_probabilities(probabilities: np.ndarray, geometry: Geometry) -> np.ndarray:
    """
    Resample class probabilities to the grid of the file and take the most probable class; 0 outside the crop.

    As in the original, probabilities are interpolated linearly, with the same rule for a separate axis, and the class
    is selected on the grid of the file. The result equals the argmax of :py:func:`restore_image`, but only one class is
    held on the grid of the file at a time, and only for a slab.

    Args:
        probabilities: ``(K, *geometry.resampled_shape)``, class 0 is the background.
        geometry: geometry of the case.

    Returns:
        class indices of shape ``geometry.shape``: uint8, or int16 for more than 256 classes.

    Raises:
        ValueError: if the shape differs from that of the preprocessed case, or there are fewer than two classes.
    """
    _check_shape(probabilities.shape[1:], geometry)
    return _into_volume(resample_to_labels(probabilities, geometry.cropped_shape, geometry.axis), geometry)


def restore_slabs(slabs: Iterable[np.ndarray], geometry: Geometry, along: int, keep: Keep | None = None) -> np.ndarray:
    """
    Do what :py:func:`restore_probabilities` does with probabilities that arrive slab by slab.

    Args:
        slabs: ``(K, ...)``, consecutive along ``along``, together ``(K, *geometry.resampled_shape)``. What is needed of
            a slab is copied before the next one is requested.
        geometry: geometry of the case.
        along: the axis of the slabs, other than the ``changed_axis`` of the geometry.
        keep: function that takes the resampled probabilities, as for :py:func:`keep_slabs`. Defaults to ``None``.

    Returns:
        class indices of shape ``geometry.shape``: uint8, or int16 for more than 256 classes.

    Raises:
        ValueError: if the slabs end too early, there are fewer than two classes, or ``along`` is the ``changed_axis``.
    """
    count, restored = _restored(slabs, geometry, along)
    volume = np.zeros(geometry.shape, dtype=class_type(count))
    for box, slab in restored:
        classes = slab.classes if keep is None else _passed_on(box, slab, keep)
        volume[box] = slab.whole(most_probable(classes))
    return volume


def keep_slabs(slabs: Iterable[np.ndarray], geometry: Geometry, along: int, keep: Keep) -> None:
    """
    Resample class probabilities that arrive slab by slab to the grid of the file, and hand them over.

    Args:
        slabs, geometry, along: as for :py:func:`restore_slabs`.
        keep: function of the index of a class, a box of the volume, and the probabilities in it, float32. It is called
            once for each class and voxel of the crop, class after class for each box, and must not change or hold the
            array.

    Raises:
        ValueError: as for :py:func:`restore_slabs`.
    """
    for box, slab in _restored(slabs, geometry, along)[1]:
        for _ in _passed_on(box, slab, keep):
            pass


def _passed_on(box: Box, slab: Slab, keep: Keep) -> Iterator[np.ndarray]:
    for index, values in enumerate(slab.classes):
        keep(index, box, slab.whole(values))
        yield values


def _restored(slabs: Iterable[np.ndarray], geometry: Geometry, along: int) -> tuple[int, Iterator[tuple[Box, Slab]]]:
    """Return the number of classes, and an iterator over boxes of the volume and what is resampled to them."""
    slabs = iter(slabs)
    first = next(slabs, None)
    if first is None or len(first) < 2:
        found = "no slab" if first is None else len(first)
        raise ValueError(f"slabs must have at least 2 classes as their first axis, got {found}.")
    old, new = geometry.resampled_shape, geometry.cropped_shape
    planes = _Planes(chain([first], slabs), along)
    restored = classes_by_slab(planes, old, new, geometry.changed_axis, along, STREAM_VOXELS // len(first))

    def boxes() -> Iterator[tuple[Box, Slab]]:
        for slab in restored:
            sides = [slice(low, high) for low, high in zip(geometry.start, geometry.stop)]
            first_row = geometry.start[along]
            sides[along] = slice(first_row + slab.rows.start, first_row + slab.rows.stop)
            yield (sides[0], sides[1], sides[2]), slab

    return len(first), boxes()


class _Planes:
    """Planes that arrive slab by slab; those before the ones that were asked for last are dropped."""

    def __init__(self, slabs: Iterable[np.ndarray], along: int) -> None:
        self.slabs = iter(slabs)
        self.before = (slice(None),) * (1 + along)
        self.axis = 1 + along
        self.held: list[np.ndarray] = []
        self.start = self.stop = 0

    def __call__(self, planes: slice) -> np.ndarray:
        while self.held and self.start + self.held[0].shape[self.axis] <= planes.start:
            self.start += self.held.pop(0).shape[self.axis]
        while self.stop < planes.stop:
            self._copy_needed(planes)
            slab = next(self.slabs, None)
            if slab is None:
                raise ValueError(f"the slabs end after {self.stop} planes, {planes.stop} are needed.")
            low = min(max(planes.start - self.stop, 0), slab.shape[self.axis])
            if not self.held:
                self.start = self.stop + low
            self.stop += slab.shape[self.axis]
            if self.stop > planes.start:
                self.held.append(slab[(*self.before, slice(low, None))])
        found = [part[(*self.before, self._within(part, first, planes))] for part, first in self._parts()]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=self.axis)

    def _copy_needed(self, planes: slice) -> None:
        """Copy the planes that are still needed, before the next slab overwrites them; the last slab is a view."""
        needed = [part[(*self.before, self._within(part, first, planes))] for part, first in self._parts()]
        self.start = max(self.start, planes.start) if self.held else self.start
        self.held = [part.copy() for part in needed]

    def _parts(self) -> Iterator[tuple[np.ndarray, int]]:
        first = self.start
        for part in self.held:
            yield part, first
            first += part.shape[self.axis]

    def _within(self, part: np.ndarray, first: int, planes: slice) -> slice:
        length = part.shape[self.axis]
        return slice(min(max(planes.start - first, 0), length), min(max(planes.stop - first, 0), length))


def _check_shape(shape: Sequence[int], geometry: Geometry) -> None:
    if tuple(shape) != geometry.resampled_shape:
        raise ValueError(f"the preprocessed case has shape {geometry.resampled_shape}, got {tuple(shape)}.")


def _into_volume(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    volume = np.zeros((*labels.shape[:-3], *geometry.shape), dtype=labels.dtype)
    crop(volume, geometry.start, geometry.stop)[...] = labels
    return volume
