"""Small sets of predictions and reference labels, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .datasets import save

SHAPE = (10, 9, 6)
SPACING = (1.0, 1.5, 2.0)  # mm
GRID = np.diag([*SPACING, 1.0])
CASES = 4


def make_component_set(seed: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Return a number of classes from 1 to 3, and pairs of prediction and reference with spurious components."""
    random = np.random.RandomState(seed)  # frozen by NumPy
    classes = 1 + seed % 3
    pairs = []
    for _ in range(CASES):
        prediction, reference = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
        for value in range(1, classes + 1):
            if random.rand() < 0.8:
                start = random.randint(0, 5, 3)
                box = tuple(slice(a, a + n) for a, n in zip(start, random.randint(1, 5, 3)))
                reference[box] = value
                if random.rand() < 0.85:
                    prediction[box] = value
            for _ in range(random.randint(0, 3)):
                start = random.randint(0, 9, 3)
                prediction[tuple(slice(a, a + n) for a, n in zip(start, random.randint(1, 3, 3)))] = value
        pairs.append((prediction, reference))
    return classes, pairs


def write_pairs(directory: Path, pairs: list[tuple[np.ndarray, np.ndarray]], affine: np.ndarray = GRID) -> list[str]:
    """Write ``case_0``, ``case_1``, ... to the folders ``pred`` and ``ref`` of a directory; return the folders."""
    for i, (prediction, reference) in enumerate(pairs):
        save(directory / f"pred/case_{i}.nii.gz", prediction, affine)
        save(directory / f"ref/case_{i}.nii.gz", reference, affine)
    return [str(directory / "pred"), str(directory / "ref")]


def make_blobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return two overlapping masks, each the union of three ellipsoids that may touch the border."""
    random = np.random.RandomState(seed)
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    masks = []
    centers, radii = random.uniform(0, 1, (3, len(shape))) * shape, random.uniform(2, 6, (3, len(shape)))
    for _ in range(2):
        mask = np.zeros(shape, bool)
        for center, radius in zip(centers + random.uniform(-1.5, 1.5, centers.shape), radii):
            mask |= sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radius)) < 1
        masks.append(mask)
    return masks[0], masks[1]
