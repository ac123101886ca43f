"""The promises: crop, resampling and normalization as published, on arrays and as MONAI transforms, and the exact way
back to the grid, affine and header of the file."""

from __future__ import annotations

import numpy as np

from mednext_monai.preprocessing.foreground import ANNOTATED, foreground_locations


def test_foreground_locations_are_the_originals():
    label = np.zeros((40, 30, 20), dtype=np.int8)
    label[5:35, 3:28, 2:18] = 1  # 12000 voxels, fewer those below
    label[10:12, 10, 3:6] = 3
    label[0] = -1
    locations = foreground_locations(label)
    assert {key: len(value) for key, value in locations.items()} == {1: 10000, 3: 6}
    random = np.random.RandomState(1234)  # as the original does it, on reversed axes
    for value in (1, 3):
        voxels = np.argwhere(label.transpose(2, 1, 0) == value)
        chosen = voxels[random.choice(len(voxels), len(locations[value]), replace=False)]
        np.testing.assert_array_equal(locations[value], chosen[:, ::-1])
    many = foreground_locations(np.ones((130, 100, 100), dtype=np.int8))
    assert len(many[1]) == 13000  # 1 % of the voxels


def test_ignored_voxels_are_no_class_and_annotated_ones_of_all_classes_are_drawn_too():
    label = np.zeros((40, 30, 20), dtype=np.int8)
    label[5:35, 3:28, 2:18] = 1
    label[:, :10] = 2
    label[0, 20:] = -1  # outside the nonzero region, but annotated
    locations = foreground_locations(label, ignore_label=2)
    assert {key: len(value) for key, value in locations.items()} == {1: 30 * 18 * 16, ANNOTATED: 10000}
    np.testing.assert_array_equal(locations[1], foreground_locations(np.where(label == 2, 0, label))[1])
    drawn = label[tuple(locations[ANNOTATED].T)]
    assert set(drawn) == {-1, 0, 1} and len(np.unique(locations[ANNOTATED], axis=0)) == 10000
    share = (label == 1).sum() / (label != 2).sum()
    assert abs((drawn == 1).mean() - share) < 0.02
    nothing = foreground_locations(np.full((3, 3, 3), 2, np.int8), ignore_label=2)
    assert list(nothing) == [ANNOTATED] and nothing[ANNOTATED].shape == (0, 3)
