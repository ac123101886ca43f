"""Rotation and scaling in one interpolation, as in the original training, and mirroring.

Source: recipe of MIC-DKFZ/MedNeXt (nnU-Net v1's ``augment_spatial`` with its default 3D parameters), reimplemented.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor, ensure_tuple_rep, ensure_tuple_size

from .splines import HALO, affine_labels, affine_linear, affine_spline

__all__ = ["RandMirrord", "RandRotateScaled", "SpatialDraw", "draw_about_one", "interpolate_box"]

MODES = ("image", "label")
INTERPOLATIONS = {
    "cubic": (affine_spline, HALO + 1),
    "linear": (affine_linear, 1),
}  # of images; voxels beside the position
BOX_ROTATION, BOX_SCALE = math.radians(30), 0.85  # determine the size of the box that the original loads
BOX_ROTATION_2D = math.radians(90)


def working_dtype(stored: torch.dtype, mode: str) -> torch.dtype:
    """Return the type for interpolation: float32 for images, int16 for labels, or int8 if stored as int8."""
    if mode == "image":
        return torch.float32
    return torch.int8 if stored == torch.int8 else torch.int16


def draw_about_one(random: np.random.RandomState, low: float, high: float) -> float:
    """Draw a factor uniformly from ``(low, 1)`` or ``(1, high)``, with probability 0.5 each."""
    if random.uniform() < 0.5 and low < 1:
        return random.uniform(low, min(1.0, high))
    return random.uniform(max(low, 1.0), max(high, 1.0))


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """
    Return the matrix ``(3, 3)`` of a rotation about three axes; angles in radians.

    The original stores axes as (z, y, x) and rotates about its first axis first; with axes (x, y, z) the order is
    reversed. The matrix maps output to input positions relative to the center.
    """
    matrix = np.eye(3)
    for axis, (i, j) in ((2, (0, 1)), (1, (2, 0)), (0, (1, 2))):
        turn = np.eye(3)
        cos, sin = math.cos(angles[axis]), math.sin(angles[axis])
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = cos, -sin, sin, cos
        matrix = turn @ matrix
    return matrix


class SpatialDraw(NamedTuple):
    """Mapping drawn by :py:class:`RandRotateScaled` for an output of ``spatial_size``."""

    matrix: np.ndarray  # (3, 3), output index to input position in voxels
    offset: np.ndarray  # (3,), position of output index 0, in voxels from the first voxel of the box
    box_size: tuple[int, ...]  # (3,); only voxels in this box are read
    interpolation: str = "cubic"  # of images

    def needed(self, spatial_size: Sequence[int], mode: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of the box that the output depends on: first voxel and size, each ``(3,)``."""
        halo = INTERPOLATIONS[self.interpolation][1] if mode == "image" else 0
        ends = np.outer(np.asarray(spatial_size) - 1, [0, 1]).T  # (2, 3)
        corners = np.array([[ends[c >> d & 1, d] for d in range(3)] for c in range(8)]) @ self.matrix.T + self.offset
        box = np.asarray(self.box_size)
        start = np.clip(np.floor(corners.min(0)).astype(int) - halo, 0, np.maximum(box - 2, 0))
        stop = np.clip(np.floor(corners.max(0)).astype(int) + halo + 2, np.minimum(start + 2, box), box)
        return start, stop - start


def interpolate_box(
    values: torch.Tensor, draw: SpatialDraw, start: np.ndarray, spatial_size: Sequence[int], mode: str
) -> torch.Tensor:
    """
    Rotate and scale the part of a box that starts at its voxel ``start``.

    Args:
        values: ``(C, X, Y, Z)``: float32 images, or int8 or int16 labels.
        draw: the mapping.
        start: ``(3,)``, as returned by :py:meth:`SpatialDraw.needed`.
        spatial_size: output size.
        mode: "image" for the interpolation that the mapping names, 0 outside; "label" for linear interpolation of each
            label's indicator, with a threshold of 0.5, -1 outside.

    Returns:
        ``(C, *spatial_size)``, in the dtype of ``values``.
    """
    matrix = torch.as_tensor(draw.matrix, dtype=torch.float64)
    offset = torch.as_tensor(draw.offset - start, dtype=torch.float64)
    if 1 in spatial_size[1:]:  # a slice: its axis comes first, because the output is computed plane by plane
        axis = list(spatial_size).index(1)
        order = [axis, *(other for other in range(3) if other != axis)]
        values, spatial_size = values.movedim(1 + axis, 1).contiguous(), [spatial_size[other] for other in order]
        out = _interpolated(values, matrix[order][:, order], offset[order], spatial_size, mode, draw.interpolation)
        return out.movedim(1, 1 + axis)
    return _interpolated(values, matrix, offset, spatial_size, mode, draw.interpolation)


def _interpolated(
    values: torch.Tensor,
    matrix: torch.Tensor,
    offset: torch.Tensor,
    spatial_size: Sequence[int],
    mode: str,
    interpolation: str,
) -> torch.Tensor:
    if mode == "image":
        return INTERPOLATIONS[interpolation][0](values, matrix, offset, spatial_size)
    return torch.stack([affine_labels(channel, matrix, offset, spatial_size) for channel in values])


class RandRotateScaled(MapTransform, Randomizable):
    """
    Dictionary transform: random rotation and isotropic scaling of ``(C, X, Y, Z)``, with one interpolation for both.

    Written for this package because MONAI's ``RandAffined`` draws rotation and scaling together, with one factor per
    axis, interpolates even samples that get neither if the sizes differ by an odd number, and samples labels from the
    nearest voxel. Here rotation and scaling are applied independently. All three angles are drawn. The scale factor is
    below and above 1 equally often and multiplies coordinates (above 1, structures become smaller). Images: cubic
    spline (or linear), 0 outside. Labels: linear interpolation of each label's indicator, with a threshold of 0.5; -1
    outside.

    If neither is applied, the output is an exact center crop from voxel ``(size - spatial_size) // 2``. Otherwise the
    output is about the exact center, which for an odd difference is half a voxel further, as in the original.

    In training, pass it to :py:class:`~mednext_monai.transforms.RandPatchd`, which then reads only the required box
    from disk. Used alone, it needs volumes in memory. It is not lazy (MONAI applies pending operations before it) and
    not invertible; a ``MetaTensor`` gets the affine matrix of its new grid.

    Args:
        keys: keys of images and labels on the same grid.
        spatial_size: output size in voxels, one number or three. Defaults to ``None``, the size of the input.
        mode: "image" or "label" per key, or one for all. Defaults to "image".
        rotate_prob: probability of rotation. Defaults to 0.2.
        scale_prob: probability of scaling. Defaults to 0.2.
        rotate_range: largest angle about each axis, in degrees; one number or three. Defaults to 30.
        scale_range: smallest and largest factor. Defaults to ``(0.7, 1.4)``.
        dummy_2d: rotate and scale only in the plane of slices. Defaults to ``False``.
        thin_axis: axis across the slices, for ``dummy_2d``. Defaults to 2, the last.
        in_plane_range: largest angle for ``dummy_2d``, in degrees. Defaults to 180.
        interpolation: of images, "cubic" as published, or "linear", as in nnU-Net v2 and faster. Defaults to "cubic".
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a mode or the interpolation is unknown, ``scale_range`` is not positive and ascending, or
            ``thin_axis`` is not 0, 1 or 2.

    Source: nnU-Net v1's ``augment_spatial`` as MIC-DKFZ/MedNeXt calls it (p 0.2 and 0.2, 30 degrees, 0.7 to 1.4).
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: int | Sequence[int] | None = None,
        mode: str | Sequence[str] = "image",
        rotate_prob: float = 0.2,
        scale_prob: float = 0.2,
        rotate_range: float | Sequence[float] = 30.0,
        scale_range: Sequence[float] = (0.7, 1.4),
        dummy_2d: bool = False,
        thin_axis: int = 2,
        in_plane_range: float = 180.0,
        interpolation: str = "cubic",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if any(m not in MODES for m in self.mode):
            raise ValueError(f"mode must be one of {MODES}, got {mode}.")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be two positive numbers, the smaller first, got {scale_range}.")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}.")
        if thin_axis not in (0, 1, 2):
            raise ValueError(f"thin_axis must be 0, 1 or 2, got {thin_axis}.")
        self.spatial_size = None if spatial_size is None else ensure_tuple_rep(spatial_size, 3)
        self.rotate_prob, self.scale_prob = rotate_prob, scale_prob
        self.rotate_range = tuple(math.radians(degrees) for degrees in ensure_tuple_rep(rotate_range, 3))
        self.scale_range = tuple(scale_range)
        self.thin_axis = thin_axis if dummy_2d else None
        self.in_plane_range = math.radians(in_plane_range)
        self.interpolation = interpolation
        self.angles: tuple[float, ...] | None = None
        self.scale: float | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw ``angles`` (three, radians) and ``scale``; ``None`` if not applied."""
        self.angles = self.scale = None
        if self.R.uniform() < self.rotate_prob:
            limits: Sequence[float] = self.rotate_range
            if self.thin_axis is not None:
                limits = [self.in_plane_range if axis == self.thin_axis else 0.0 for axis in range(3)]
            self.angles = tuple(self.R.uniform(-limit, limit) for limit in limits)
        if self.R.uniform() < self.scale_prob:
            self.scale = draw_about_one(self.R, *self.scale_range)

    def box_size(self, spatial_size: Sequence[int]) -> tuple[int, ...]:
        """
        Return the size of the box that the original loads for an output of ``spatial_size``: 205 for 128, per axis.

        It fits a rotation by 30 degrees about any single axis (in the plane of slices, by ``in_plane_range``, at most
        90 degrees) and a factor of 1 / 0.85, independent of the ranges; stronger mappings see zeros outside.
        """
        size = np.asarray(spatial_size, dtype=float)
        box = size.copy()
        for axis in range(3):
            if self.thin_axis is not None and axis != self.thin_axis:
                continue
            angles = [0.0] * 3
            angles[axis] = BOX_ROTATION if self.thin_axis is None else self._box_rotation(axis)
            box = np.maximum(box, np.abs(rotation_matrix(angles) @ size))
        box = (box / BOX_SCALE + 1e-9).astype(int)
        if self.thin_axis is not None:
            box[self.thin_axis] = size[self.thin_axis]
        return tuple(int(n) for n in box)

    def _box_rotation(self, axis: int) -> float:
        """Return the angle in the plane of slices for which the box is large enough."""
        angle = min(self.in_plane_range, BOX_ROTATION_2D)
        return -angle if axis == 1 else angle  # about axis 1, `rotation_matrix` turns from the last axis to the first

    def draw(self, spatial_size: Sequence[int], box_size: Sequence[int]) -> SpatialDraw | None:
        """Return the last draw as a mapping about the center of a box of ``box_size``, or ``None`` if not applied."""
        if self.angles is None and self.scale is None:
            return None
        matrix = rotation_matrix(self.angles or (0.0, 0.0, 0.0))
        factor = np.full(3, self.scale or 1.0)
        if self.thin_axis is not None:
            factor[self.thin_axis] = 1.0
        matrix = matrix * factor[:, None]
        box, size = np.asarray(box_size), np.asarray(spatial_size)
        offset = (box - 1) / 2 - matrix @ ((size - 1) / 2)
        return SpatialDraw(matrix, offset, tuple(int(n) for n in box), self.interpolation)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        for key, mode in self.key_iterator(d, self.mode):
            values = convert_to_tensor(d[key], track_meta=get_track_meta())
            shape = values.shape[1:]
            size = ensure_tuple_size(self.spatial_size or shape, 3)
            draw = self.draw(size, shape)
            if draw is None:
                start = np.array([(n - s) // 2 for n, s in zip(shape, size)])
                if start.min() < 0:
                    raise ValueError(f"spatial_size {size} is larger than the volume {tuple(shape)} of key {key!r}.")
                out = values[(slice(None), *(slice(b, b + s) for b, s in zip(start, size)))].clone()
                to_input = homogeneous(np.eye(3), start)
            else:
                start, extent = draw.needed(size, mode)
                part = values[(slice(None), *(slice(b, b + e) for b, e in zip(start, extent)))]
                part = part.as_tensor() if isinstance(part, MetaTensor) else part
                part = part.to(working_dtype(part.dtype, mode))
                out = interpolate_box(part, draw, start, size, mode).to(values.dtype)
                to_input = homogeneous(draw.matrix, draw.offset)
            d[key] = on_new_grid(out, values, to_input)
        return d


class RandMirrord(MapTransform, Randomizable):
    """
    Dictionary transform: mirror ``(C, *spatial)`` along each axis with the same probability, and copy it once.

    MONAI's ``RandFlipd`` for one axis after the other gives the same, with a copy for each axis. It is not lazy and not
    invertible; a ``MetaTensor`` gets the affine matrix of its new grid.

    Args:
        keys: keys of images and labels of one spatial shape.
        prob: probability per axis. Defaults to 0.5.
        axes: spatial axes that may be mirrored. Defaults to ``(0, 1, 2)``.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if the probability is outside [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        axes: Sequence[int] = (0, 1, 2),
        allow_missing_keys: bool = False,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be between 0 and 1, got {prob}.")
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.prob, self.axes = prob, tuple(axes)
        self.mirrored: tuple[int, ...] = ()

    def randomize(self, data: Any = None) -> None:
        """Draw ``mirrored``, some of the axes."""
        self.mirrored = tuple(axis for axis in self.axes if self.R.uniform() < self.prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        for key in self.key_iterator(d):
            values = convert_to_tensor(d[key], track_meta=get_track_meta())
            if self.mirrored:
                plain = values.as_tensor() if isinstance(values, MetaTensor) else values
                matrix, last = np.eye(3), np.zeros(3)
                for axis in self.mirrored:
                    matrix[axis, axis], last[axis] = -1, values.shape[1 + axis] - 1
                out = plain.flip([1 + axis for axis in self.mirrored])
                values = on_new_grid(out, values, homogeneous(matrix, last))
            d[key] = values
        return d


def homogeneous(matrix: np.ndarray, offset: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the affine matrix ``(4, 4)``, float64, of ``matrix @ index + offset``."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = matrix, offset
    return out


def on_new_grid(values: torch.Tensor, source: Any, to_input: np.ndarray) -> torch.Tensor:
    """
    Return ``values`` as ``MetaTensor``, or as plain tensor if MONAI's ``set_track_meta`` is off.

    Args:
        values: values on the new grid, ``(C, *spatial)``.
        source: the input; its metadata are copied if it is a ``MetaTensor``.
        to_input: ``(4, 4)``, from voxels of ``values`` to voxels of ``source``.
    """
    values = values.as_tensor() if isinstance(values, MetaTensor) else values
    if not get_track_meta():
        return values
    affine, meta = torch.eye(4, dtype=torch.float64), {}
    if isinstance(source, MetaTensor):
        affine, meta = source.affine, {key: value for key, value in source.meta.items() if key != "affine"}
    return MetaTensor(values, affine=affine @ torch.from_numpy(to_input).to(affine), meta=meta)
