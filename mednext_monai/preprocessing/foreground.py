"""Voxel locations per class, drawn once per case, from which the training patches with foreground are chosen.

Source: nnU-Net v1 as used by MedNeXt: up to 10000 voxels of every class, or 1 % of them where that is more.
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
    Draw ``max(min(10000, N), ceil(0.01 N))`` of the ``N`` voxels of every class above 0, without replacement.

    The random state is new for every call (seed 1234) and voxels are counted with the first axis running fastest,
    which is the original's order for its reversed axes: the same voxels are drawn as there.

    Args:
        label: integers ``(X, Y, Z)``.

    Returns:
        for every class present, in ascending order, its voxel coordinates ``(n, 3)`` in the label's axis order:
        int16, or int32 when an axis is longer than int16 can count.
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
