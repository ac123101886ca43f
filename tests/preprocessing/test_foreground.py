"""The promises: crop, resampling and normalization as published, on arrays and as MONAI transforms, and the exact way
back to the grid, affine and header of the file."""

from __future__ import annotations

import numpy as np

from mednext_monai.preprocessing.foreground import foreground_locations


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
