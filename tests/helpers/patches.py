"""A case whose voxels are numbered, so that a patch says where it was cut out, and the counts that chance allows."""

from __future__ import annotations

import numpy as np


def binomial_band(n: int, p: float) -> tuple[float, float]:
    """Counts that a fair draw leaves about once in 15000."""
    return n * p - 4 * (n * p * (1 - p)) ** 0.5, n * p + 4 * (n * p * (1 - p)) ** 0.5


def numbered_case(shape=(20, 18, 16)) -> dict:
    """A case whose first channel numbers its voxels from 1, so that a patch says where it came from."""
    index = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    label = np.zeros(shape, dtype=np.int8)
    label[2:8, 2:8, 2:8] = 1
    label[tuple(n // 2 for n in shape)] = 2
    return {
        "image": np.stack([index, -index]),
        "label": label,
        "foreground": {1: np.argwhere(label == 1), 2: np.argwhere(label == 2)},
    }
