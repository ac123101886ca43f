"""What a plan in 2D decides: across which axis the slices lie, and whether they are resampled across it.

Source: nnU-Net v1's 2D planner with the 1 mm isotropic target as MedNeXt offers it. It moves the axis with the coarsest
target spacing to the front and cuts slices across it; at 1 mm all are equal, and it takes the first one that it reads,
which is the last axis of a NIfTI file. The authors call 2D untested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.folds import some
from .fingerprint import CaseFingerprint

__all__ = ["SLICE_SPACINGS", "Slices", "check_are_volumes", "plan_slices"]

SLICE_SPACINGS = ("published", "keep")
PUBLISHED_AXIS = 2  # of axes that are equal, the first that the original reads
THICK = 3.0  # times 1 mm: slices that the published spacing multiplies


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
    slice_spacing: str = "published",
) -> Slices:
    """
    Decide how the cases are cut into slices.

    Args:
        cases: the fingerprint of each case.
        target_spacing: mm per axis, as published.
        slice_axis: the axis across the slices. Defaults to ``None``: of images with one slice, the axis that they do
            not extend along; else that of the coarsest target spacing, of equal ones the last.
        slice_spacing: ``"published"`` to resample across the slices as well, ``"keep"`` to leave them as they are.
            Images with one slice are not resampled across it. Defaults to ``"published"``.

    Raises:
        ValueError: if an argument is invalid, or if images have one slice across different axes.
    """
    if slice_axis not in (None, 0, 1, 2) or isinstance(slice_axis, bool):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis!r}.")
    if slice_spacing not in SLICE_SPACINGS:
        raise ValueError(f"slice_spacing must be one of {', '.join(SLICE_SPACINGS)}, got {slice_spacing!r}.")
    median = np.median([case.spacing for case in cases], 0)
    keeps = slice_spacing == "keep"
    flat = _flat_axis(cases)
    if flat is not None and slice_axis not in (None, flat):
        raise ValueError(f"slice_axis is {slice_axis}, but images have one slice across axis {flat}.")
    if flat is not None:
        axis, why_axis = flat, "the images are single slices, which do not extend along it"
    elif slice_axis is not None:
        axis, why_axis = slice_axis, "as requested"
    else:
        axis, why_axis = _coarsest(median.tolist() if keeps else target_spacing)
    are_single = all(case.shape[axis] == 1 for case in cases)
    spacing: list[float | None] = list(target_spacing)
    spacing[axis] = None if keeps or are_single else target_spacing[axis]
    decisions = [
        {"what": "slice_axis", "value": str(axis), "why": why_axis},
        {"what": "slice spacing", **_why_spacing(spacing[axis], are_single)},
    ]
    return Slices(axis, spacing, decisions, _warnings(median, axis, spacing))


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


def _coarsest(spacing: Sequence[float]) -> tuple[int, str]:
    """Return the axis of the coarsest spacing and the reason; of equal axes the last."""
    coarsest = max(spacing)
    axis = max(axis for axis, value in enumerate(spacing) if np.isclose(value, coarsest, rtol=1e-5))
    if np.isclose(min(spacing), coarsest, rtol=1e-5):
        return PUBLISHED_AXIS, "of axes with the same spacing the last one, which is the first that the original reads"
    return axis, f"the axis of the coarsest spacing, {coarsest:.3g} mm (median)"


def _why_spacing(spacing: float | None, are_single: bool) -> dict[str, str]:
    if are_single:
        return {"value": "none", "why": "the images are single slices"}
    if spacing is None:
        return {"value": "kept", "why": "as requested: slices are not resampled across their axis; published is 1 mm"}
    return {"value": f"{spacing:g} mm", "why": "as published, like all axes (--slice_spacing keep leaves it as it is)"}


def _warnings(median: np.ndarray, axis: int, spacing: Sequence[float | None]) -> list[str]:
    target = spacing[axis]
    if target is None or median[axis] <= THICK * target:
        return []
    return [
        f"the slices are {median[axis]:.3g} mm apart (median) and are repeated to {target:g} mm, as published; plan "
        "with --slice_spacing keep to train on each slice once"
    ]
