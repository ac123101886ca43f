"""The metrics of one case: Dice, surface Dice, HD95 and volumes of every class and region.

A metric without a value is NaN: all of them if a class is neither in the prediction nor in the reference, as published
(nnU-Net v1 and the evaluation of the authors' code); distances also if it is in one of them only. Then Dice and surface
Dice are 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .labels import Labels

__all__ = ["EMPTY_BOTH", "EMPTY_PREDICTION", "EMPTY_REFERENCE", "ClassScores", "empty_scores", "score_case"]

EMPTY_BOTH = "absent in both"
EMPTY_PREDICTION = "absent in the prediction"
EMPTY_REFERENCE = "absent in the reference"

Box = tuple[slice, ...]


@dataclass(frozen=True)
class ClassScores:
    """
    The metrics of one class or region in one case; NaN means that a metric has no value.

    Attributes:
        case: case id.
        name: name of the class or region.
        dice: ``2 tp / (2 tp + fp + fn)``.
        surface_dice: share of both surfaces that is within the tolerance of the other one.
        hd95_mm: 95th percentile of the Hausdorff distance in mm, the larger one of both directions.
        volume_ml: volume of the prediction.
        reference_ml: volume of the reference.
        volume_difference_ml: prediction minus reference.
        relative_volume_difference: the same divided by the reference; no value if that is empty.
        true_positives: voxels in both.
        false_positives: voxels in the prediction only.
        false_negatives: voxels in the reference only.
        true_negatives: voxels in neither, without ignored ones.
        note: why metrics have no value, or empty.
    """

    case: str
    name: str
    dice: float
    surface_dice: float
    hd95_mm: float
    volume_ml: float
    reference_ml: float
    volume_difference_ml: float
    relative_volume_difference: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    note: str


def score_case(
    case: str,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    tolerance: float = 1.0,
    tolerance_in_voxels: bool = False,
) -> list[ClassScores]:
    """
    Compare a segmentation with its reference.

    Surface Dice weighs surface elements by their area, as DeepMind's ``surface-distance`` does, with which the authors
    evaluated. HD95 is MONAI's, between border voxels. Both see the border of the volume as a surface; along an axis
    with one voxel there is none, so that a single slice is measured in 2D. Dice is computed from integer counts, since
    MONAI's ``DiceHelper`` has no value if only the reference is empty.

    Args:
        case: case id.
        prediction: class indices, integers ``(X, Y, Z)``.
        reference: class indices, integers ``(X, Y, Z)``.
        spacing: edges of a voxel in mm, in the order of the axes.
        labels: what is evaluated. Voxels whose reference is ``labels.ignore`` count as background in both.
        tolerance: largest distance of surfaces that agree, in mm. Defaults to 1.0.
        tolerance_in_voxels: measure surface Dice in voxels whatever the spacing; with the tolerance 1.0 this is the
            authors' reading. Defaults to ``False``.

    Returns:
        the metrics of each class, then of each region.

    Raises:
        ValueError: if the shapes differ, an array is not an integer volume, the spacing or tolerance is invalid, or a
            value is neither a class nor ignored.
    """
    if prediction.shape != reference.shape or reference.ndim != 3:
        raise ValueError(f"{case}: expected two volumes of one shape, got {prediction.shape} and {reference.shape}.")
    if prediction.dtype.kind not in "iu" or reference.dtype.kind not in "iu":
        raise ValueError(f"{case}: class indices must be integers, got {prediction.dtype} and {reference.dtype}.")
    if len(spacing) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        raise ValueError(f"{case}: spacing must be three positive numbers in mm, got {tuple(spacing)}.")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance}.")
    voxels = reference.size
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        voxels -= int(np.count_nonzero(ignored))
        prediction, reference = (np.where(ignored, array.dtype.type(0), array) for array in (prediction, reference))
    predicted, present = _boxes(prediction, case), _boxes(reference, case)
    found = sorted({*predicted, *present})
    unexpected = labels.unexpected(found)
    if unexpected:
        known = sorted((labels.classes or {}).values())
        raise ValueError(f"{case}: contains the label value(s) {unexpected}; the classes are {known}.")
    flat = tuple(axis for axis in range(3) if reference.shape[axis] == 1)[:1]  # MONAI measures in 2D and 3D
    surface = _SurfaceSettings(tuple(map(float, spacing)), tolerance, tolerance_in_voxels, flat)
    scores = []
    for name, values in labels.named_values(found).items():
        box = _union([boxes[value] for boxes in (predicted, present) for value in values if value in boxes])
        if box is None:
            scores.append(empty_scores(case, name, voxels))
        else:
            masks = [np.isin(array[box], values) for array in (prediction, reference)]
            scores.append(_score(case, name, masks[0], masks[1], voxels, surface))
    return scores


def empty_scores(case: str, name: str, voxels: int) -> ClassScores:
    """Return the metrics of a class that is neither in the prediction nor in the reference, of ``voxels`` voxels."""
    none = math.nan
    return ClassScores(case, name, none, none, none, 0.0, 0.0, 0.0, none, 0, 0, 0, voxels, EMPTY_BOTH)


@dataclass(frozen=True)
class _SurfaceSettings:
    """How surfaces are measured; ``flat`` is the axis that the volume does not extend along, if there is one."""

    spacing: tuple[float, ...]
    tolerance: float
    in_voxels: bool
    flat: tuple[int, ...]


def _score(
    case: str, name: str, predicted: np.ndarray, present: np.ndarray, voxels: int, settings: _SurfaceSettings
) -> ClassScores:
    """Return the metrics of two masks that are not both empty, cropped from a volume of ``voxels`` voxels."""
    hits, positives, size = (int(np.count_nonzero(mask)) for mask in (predicted & present, predicted, present))
    ml = float(np.prod(settings.spacing)) / 1000
    note = EMPTY_PREDICTION if not positives else EMPTY_REFERENCE if not size else ""
    surface_dice, hd95 = (0.0, math.nan) if note else _surface_scores(predicted, present, settings)
    return ClassScores(
        case=case,
        name=name,
        dice=2 * hits / (positives + size),
        surface_dice=surface_dice,
        hd95_mm=hd95,
        volume_ml=positives * ml,
        reference_ml=size * ml,
        volume_difference_ml=(positives - size) * ml,
        relative_volume_difference=(positives - size) / size if size else math.nan,
        true_positives=hits,
        false_positives=positives - hits,
        false_negatives=size - hits,
        true_negatives=voxels - positives - size + hits,
        note=note,
    )


def _surface_scores(predicted: np.ndarray, present: np.ndarray, settings: _SurfaceSettings) -> tuple[float, float]:
    """Return surface Dice and HD95 of two masks that are not empty."""
    import torch  # MONAI is slow to import
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    y_pred, y = (torch.from_numpy(np.squeeze(mask, axis=settings.flat)[None, None]) for mask in (predicted, present))
    spacing = [edge for axis, edge in enumerate(settings.spacing) if axis not in settings.flat]
    edges = [1.0] * len(spacing) if settings.in_voxels else spacing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI uses an argument that it deprecates
        surface_dice = compute_surface_dice(y_pred, y, [settings.tolerance], True, spacing=edges, use_subvoxels=True)
        hd95 = compute_hausdorff_distance(y_pred, y, True, percentile=95, spacing=spacing)
    return surface_dice.item(), hd95.item()


def _boxes(array: np.ndarray, case: str) -> dict[int, Box]:
    """Return the bounding box of each positive value."""
    if array.min() < 0:
        raise ValueError(f"{case}: contains the negative label value {array.min()}.")
    return {i + 1: box for i, box in enumerate(ndimage.find_objects(array)) if box is not None}


def _union(boxes: Sequence[Box]) -> Box | None:
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes))
