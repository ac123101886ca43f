"""The promises: crop, resampling and normalization as published, on arrays and as MONAI transforms, and the exact way
back to the grid, affine and header of the file."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mednext_monai.preprocessing.nonzero import bounding_box, fill_holes, mark_outside, nonzero_mask


def test_nonzero_region():
    image = np.zeros((2, 5, 6, 7), dtype=np.float32)
    image[0, 1:4, 1:5, 1:6] = -3  # negative values count
    image[0, 2, 2:4, 2:4] = 0  # a hole
    image[0, 3, 4, 3:] = 0  # open to the right
    image[1, 4, 5, 6] = np.nan  # NaN counts, and any channel does
    mask = nonzero_mask(image)
    assert mask.sum() == 3 * 4 * 5 - 4 - 3 + 1
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    assert fill_holes(mask).sum() == mask.sum() + 4
    assert bounding_box(mask) == ((1, 1, 1), (5, 6, 7))
    for seed in range(3):
        mask = np.random.RandomState(seed).rand(8, 9, 10) < 0.6
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_outside_is_marked_where_there_is_no_label():
    label = np.array([[[-5, 0, 2, -1, 0, 3]]], dtype=np.int8)
    inside = np.array([[[True, True, True, True, False, False]]])
    assert mark_outside(label, inside).tolist() == [[[0, 0, 2, -1, -1, 3]]]
    assert label[0, 0, 0] == -5  # the argument is left alone
    with pytest.raises(ValueError, match="signed integer"):
        mark_outside(label.astype(np.uint8), inside)


def test_the_box_is_the_union_of_the_channels_and_filling_holes_does_not_change_it():
    for seed in range(20):
        image = np.random.default_rng(seed).normal(size=(2, 9, 8, 7)) * (
            np.random.default_rng(seed + 99).uniform(size=(2, 9, 8, 7)) < 0.01 * (1 + seed)
        )
        if not image.any():
            continue
        filled = ndimage.binary_fill_holes((image != 0).any(0))
        box = tuple(slice(*limits) for limits in zip(*bounding_box(nonzero_mask(image))))
        assert box == ndimage.find_objects(filled.astype(int))[0]
    with pytest.raises(ValueError, match="0 everywhere"):
        bounding_box(nonzero_mask(np.zeros((1, 3, 3, 3))))
