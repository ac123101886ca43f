"""Voxel locations per class, drawn once per case, from which training patches with foreground are selected.

Source: nnU-Net v1 as used by MedNeXt: at most 10000 voxels of each class, or 1% of them if that is more.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["foreground_locations"]

SEED = 1234
MAX_LOCATIONS = 10000
MIN_FRACTION = 0.01


def foreground_locations(label: np.ndarray) -> dict[int, np.ndarray]:
    """
    Draw ``max(min(10000, N), ceil(0.01 N))`` of the ``N`` voxels of each class above 0, without replacement.

    Each call starts from seed 1234, and voxels are enumerated with the first axis varying fastest. This is the order of
    the original, whose axes are reversed, so the same voxels are drawn.

    Args:
        label: integers ``(X, Y, Z)``.

    Returns:
        voxel coordinates ``(n, 3)`` of each class that occurs, in ascending order of classes: int16, or int32 if an
        axis is too long for int16.
    """
    random = np.random.RandomState(SEED)
    dtype = np.int16 if max(label.shape) <= np.iinfo(np.int16).max else np.int32
    flat = label.ravel(order="F")
    foreground = np.flatnonzero(flat > 0)
    classes = flat[foreground]
    locations = {}
    for value in np.unique(classes):
        voxels = foreground[classes == value]
        count = max(min(MAX_LOCATIONS, len(voxels)), math.ceil(MIN_FRACTION * len(voxels)))
        chosen = voxels[random.choice(len(voxels), count, replace=False)]
        locations[int(value)] = np.stack(np.unravel_index(chosen, label.shape, order="F"), axis=1).astype(dtype)
    return locations
