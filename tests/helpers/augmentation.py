"""Random volumes, affine maps, and what chance allows, for the tests of the augmentation."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mednext_monai.transforms.spatial import rotation_matrix


def within(count: int, n: int, p: float) -> bool:
    """Whether a fair draw would give this count, all but once in 15000."""
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def assert_half_below_one(factors: np.ndarray, low: float, high: float) -> None:
    """Uniform in (low, 1) half of the time and in (1, high) otherwise."""
    below, above = factors[factors < 1], factors[factors >= 1]
    assert within(len(below), len(factors), 0.5)
    for part, a, b in ((below, low, 1), (above, 1, high)):
        assert a <= part.min() < a + 0.02 * (b - a) and b - 0.02 * (b - a) < part.max() <= b
        assert abs(part.mean() - (a + b) / 2) < 4 * (b - a) / 12**0.5 / len(part) ** 0.5


def volume(shape, channels=2, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((channels, *shape))


def label_map(shape, seed=0) -> np.ndarray:
    smooth_noise = ndimage.gaussian_filter(volume(shape, 1, seed)[0], 2)
    label = np.digitize(smooth_noise, np.quantile(smooth_noise, [0.4, 0.6, 0.8])).astype(np.int16)
    label[: shape[0] // 5] = -1
    return label


MAPS = {  # angles in radians, factor
    "rotation": ((0.4, -0.3, 0.2), 1.0),
    "rotation and zoom out": ((0.1, 0.5, -0.2), 1.37),
    "rotation and zoom in": ((-0.5, 0.3, 0.4), 0.71),
    "zoom out": ((0, 0, 0), 1.31),
    "zoom in": ((0, 0, 0), 0.77),
}


def affine(name, shape, size):
    angles, factor = MAPS[name]
    matrix = rotation_matrix(angles) * factor
    return matrix, (np.array(shape) - 1) / 2 - matrix @ ((np.array(size) - 1) / 2)
