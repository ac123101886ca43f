"""Voxel locations per class, drawn once per case, from which training patches with foreground are selected.

Source: nnU-Net v1 as used by MedNeXt: at most 10000 voxels of each class, or 1% of them if that is more.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["ANNOTATED", "foreground_locations"]

SEED = 1234
MAX_LOCATIONS = 10000
MIN_FRACTION = 0.01
ANNOTATED = "annotated"  # key of voxels of any class, background included


def foreground_locations(label: np.ndarray, ignore_label: int | None = None) -> dict[int | str, np.ndarray]:
    """
    Draw ``max(min(10000, N), ceil(0.01 N))`` of the ``N`` voxels of each class above 0, without replacement.

    Each call starts from seed 1234, and voxels are enumerated with the first axis varying fastest. This is the order of
    the original, whose axes are reversed, so the same voxels are drawn.

    Args:
        label: integers ``(X, Y, Z)``.
        ignore_label: value of voxels without annotation, which are not a class. With one, as many of all annotated
            voxels, background included, are drawn last, as in nnU-Net v2. Defaults to ``None``.

    Returns:
        voxel coordinates ``(n, 3)`` of each class that occurs, in ascending order of classes, and with an ignore label
        those of annotated voxels under :py:data:`ANNOTATED`, which may be none: int16, or int32 if an axis is too long
        for int16.
    """
    random = np.random.RandomState(SEED)
    dtype = np.int16 if max(label.shape) <= np.iinfo(np.int16).max else np.int32
    flat = label.ravel(order="F")
    foreground = np.flatnonzero(flat > 0 if ignore_label is None else (flat > 0) & (flat != ignore_label))
    classes = flat[foreground]

    def draw(voxels: np.ndarray) -> np.ndarray:
        count = max(min(MAX_LOCATIONS, len(voxels)), math.ceil(MIN_FRACTION * len(voxels)))
        chosen = voxels[random.choice(len(voxels), count, replace=False)] if len(voxels) else voxels
        return np.stack(np.unravel_index(chosen, label.shape, order="F"), axis=1).astype(dtype)

    locations: dict[int | str, np.ndarray] = {
        int(value): draw(foreground[classes == value]) for value in np.unique(classes)
    }
    if ignore_label is not None:
        locations[ANNOTATED] = draw(np.flatnonzero(flat != ignore_label))
    return locations
