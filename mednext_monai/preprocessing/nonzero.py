"""The nonzero region of an image: the box to crop to, and the voxels that count as outside.

Source: nnU-Net v1, which MedNeXt uses unchanged: a voxel is inside if any channel is nonzero there, or if it is in a
hole of that region. (MONAI's ``CropForeground`` selects ``x > 0`` by default, which removes most of a CT.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["OUTSIDE", "bounding_box", "crop", "fill_holes", "mark_outside", "nonzero_mask"]

OUTSIDE = -1  # label of background voxels outside the nonzero region


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Return where any channel of an image ``(C, X, Y, Z)`` is nonzero: boolean ``(X, Y, Z)``, holes not filled.

    NaN counts as nonzero, as in the original.
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """
    Fill the holes of a boolean mask: background that is not face-connected to the border of the array.

    Equals ``scipy.ndimage.binary_fill_holes``; labeling the background once is faster than repeated dilation.
    """
    components, count = ndimage.label(~mask)
    is_open = np.zeros(count + 1, dtype=bool)
    for axis in range(mask.ndim):
        for index in (0, -1):
            is_open[np.unique(components.take(index, axis=axis))] = True
    is_open[0] = False  # the mask itself
    return ~is_open[components]


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """
    Return the first index and one past the last index of the mask along each axis.

    Raises:
        ValueError: if the mask is empty.
    """
    start, stop = [], []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        indices = np.flatnonzero(mask.any(axis=others))
        if indices.size == 0:
            raise ValueError("the image is 0 everywhere.")
        start.append(int(indices[0]))
        stop.append(int(indices[-1]) + 1)
    return tuple(start), tuple(stop)


def crop(array: np.ndarray, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    """Return a box of an array whose last ``len(start)`` axes are spatial, as a view."""
    box: tuple[Any, ...] = (..., *(slice(low, high) for low, high in zip(start, stop)))
    return array[box]


def mark_outside(label: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """
    Return a copy of a label map in which background outside the mask is ``OUTSIDE`` (-1); labeled voxels are kept.

    Args:
        label: signed integers, same shape as ``inside``; values below -1 become 0.
        inside: boolean mask with holes filled.

    Raises:
        ValueError: if the type of the label is not a signed integer or the shapes differ.
    """
    if not np.issubdtype(label.dtype, np.signedinteger):
        raise ValueError(f"the label must have a signed integer type, got {label.dtype}.")
    if label.shape != inside.shape:
        raise ValueError(f"label and mask must have one shape, got {label.shape} and {inside.shape}.")
    label = np.where(label < OUTSIDE, label.dtype.type(0), label)
    label[(label == 0) & ~inside] = OUTSIDE
    return label
