"""What a plan in 2D decides: across which axis the slices lie, and whether they are resampled across it.

Source: nnU-Net v1's 2D planner and preprocessing with the 1 mm target as MedNeXt offers it. The planner moves the axis
with the coarsest target spacing to the front and cuts slices across it; at 1 mm all are equal, and it takes the first
one that it reads, which is the last axis of a NIfTI file. The preprocessing then replaces the target of this axis by
the spacing of each case, so that slices are resampled in their plane only. The authors call 2D untested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.folds import some
from .fingerprint import CaseFingerprint

__all__ = ["KEEP", "Slices", "check_are_volumes", "plan_slices"]

KEEP = "keep"
PUBLISHED_AXIS = 2  # of axes with the same target, the first that the original reads
COARSE = 3.0  # times: spacings that differ so much are those of slices


class Slices(NamedTuple):
    """How volumes are cut into slices."""

    axis: int
    spacing: list[float | None]  # mm; None: not resampled
    decisions: list[dict[str, str]]
    warnings: list[str]


def check_are_volumes(images: dict[str, Sequence[int]]) -> None:
    """
    Check that images have more than one slice, as a plan in 3D needs them.

    Args:
        images: voxels per axis by case id.

    Raises:
        ValueError: naming the cases, and what to do.
    """
    flat = [name for name, shape in images.items() if 1 in shape]
    if flat:
        have = "is one slice" if len(flat) == 1 else "are one slice each"
        raise ValueError(
            f"spatial_dims: {some(flat)} {have}, and the plan is 3D; plan such a data set in 2D, with --spatial_dims 2."
        )


def plan_slices(
    cases: Sequence[CaseFingerprint],
    target_spacing: Sequence[float],
    slice_axis: int | None = None,
    slice_spacing: str | float | None = None,
) -> Slices:
    """
    Decide how the cases are cut into slices.

    Args:
        cases: the fingerprint of each case.
        target_spacing: mm in the plane of the slices, per axis.
        slice_axis: the axis across the slices. Defaults to ``None``: of images with one slice, the axis that they do
            not extend along, else the last one, as published.
        slice_spacing: ``"keep"`` to leave the slices as they are, or the distance in mm to which they are resampled.
            Images with one slice are not resampled across it. Defaults to ``None``: they are kept, as published.

    Raises:
        ValueError: if an argument is invalid, or if images have one slice across different axes.
    """
    if slice_axis not in (None, 0, 1, 2) or isinstance(slice_axis, bool):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis!r}.")
    distance = _distance(slice_spacing)
    flat = _flat_axis(cases)
    if flat is not None and slice_axis not in (None, flat):
        raise ValueError(f"slice_axis is {slice_axis}, but images have one slice across axis {flat}.")
    if flat is not None:
        axis, why_axis = flat, "the images are single slices, which do not extend along it"
    elif slice_axis is not None:
        axis, why_axis = slice_axis, f"as requested; published is {PUBLISHED_AXIS}"
    else:
        axis, why_axis = PUBLISHED_AXIS, "as published: of axes with the same target the first that the original reads"
    are_single = all(case.shape[axis] == 1 for case in cases)
    spacing: list[float | None] = list(target_spacing)
    spacing[axis] = None if are_single else distance
    decisions = [
        {"what": "slice_axis", "value": str(axis), "why": why_axis},
        {"what": "slice spacing", **_why_spacing(spacing[axis], are_single)},
    ]
    median = np.median([case.spacing for case in cases], 0).tolist()
    return Slices(axis, spacing, decisions, _warnings(median, axis, spacing[axis], are_single))


def _distance(slice_spacing: str | float | None) -> float | None:
    """Return the distance in mm, which may be given as text; ``None`` to keep that of each case."""
    if slice_spacing in (None, KEEP):
        return None
    try:
        distance = math.nan if isinstance(slice_spacing, bool) else float(slice_spacing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        distance = math.nan
    if not (math.isfinite(distance) and distance > 0):
        raise ValueError(f"slice_spacing must be {KEEP} or a positive number of mm, got {slice_spacing!r}.")
    return distance


def _flat_axis(cases: Sequence[CaseFingerprint]) -> int | None:
    """Return the axis along which images have one voxel, or ``None`` if all are volumes."""
    axes: dict[int, str] = {}
    for case in cases:
        for axis in (axis for axis, count in enumerate(case.shape) if count == 1):
            axes.setdefault(axis, case.id)
    if len(axes) > 1:
        found = ", ".join(f"{name} across axis {axis}" for axis, name in axes.items())
        raise ValueError(f"images must have their slices across one axis, got {found}.")
    return next(iter(axes), None)


def _why_spacing(spacing: float | None, are_single: bool) -> dict[str, str]:
    if are_single:
        return {"value": "none", "why": "the images are single slices"}
    if spacing is None:
        return {"value": "kept", "why": "as published: slices are resampled in their plane only"}
    return {"value": f"{spacing:g} mm", "why": "as requested; as published, slices are kept as they are"}


def _warnings(median: Sequence[float], axis: int, distance: float | None, are_single: bool) -> list[str]:
    """Return a warning about slices across another axis than the coarse one, or that are mostly repeated."""
    coarsest = max(range(3), key=lambda other: median[other])
    warnings = []
    if coarsest != axis and not are_single and median[coarsest] > COARSE * median[axis]:
        warnings.append(
            f"the spacing across axis {coarsest} is {median[coarsest]:.3g} mm (median) and slices lie across axis "
            f"{axis}; plan with --slice_axis {coarsest} for those that were acquired"
        )
    if distance is not None and median[axis] > COARSE * distance:
        warnings.append(
            f"the slices are {median[axis]:.3g} mm apart (median) and are repeated to {distance:g} mm; published is to "
            "keep them"
        )
    return warnings
