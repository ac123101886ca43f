"""Augmentation: how often, in what range, and the same numbers as a float64 computation for fixed draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mednext_monai.transforms.spatial import rotation_matrix
from mednext_monai.transforms.splines import affine_labels, affine_spline, apply_along_axes, spline_matrix


def volume(shape, channels=2, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((channels, *shape))


def label_map(shape, seed=0) -> np.ndarray:
    smooth_noise = ndimage.gaussian_filter(volume(shape, 1, seed)[0], 2)
    label = np.digitize(smooth_noise, np.quantile(smooth_noise, [0.4, 0.6, 0.8])).astype(np.int16)
    label[: shape[0] // 5] = -1
    return label


def reference_labels(label, matrix, offset, size) -> np.ndarray:
    """Per-label linear indicator, won at 0.5, the later label wins; -1 outside the outermost voxel centers."""
    out = np.zeros(size, dtype=label.dtype)
    for value in np.unique(label):
        share = ndimage.affine_transform((label == value).astype(float), matrix, offset, size, order=1)
        out[share >= 0.5] = value
    points = np.einsum("ij,jxyz->ixyz", matrix, np.indices(size)) + np.reshape(offset, (3, 1, 1, 1))
    last = np.reshape(label.shape, (3, 1, 1, 1)) - 1
    out[((points < 0) | (points > last)).any(0)] = -1
    return out


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


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_spline_interpolation_equals_scipy(name, channels):
    shape, size = (33, 28, 37), (20, 24, 18)
    image = volume(shape, channels)
    matrix, offset = affine(name, shape, size)
    expected = np.stack([ndimage.affine_transform(c, matrix, offset, size, order=3) for c in image])
    out = affine_spline(torch.from_numpy(image).float(), torch.from_numpy(matrix), torch.from_numpy(offset), size)
    assert (expected == 0).any() or MAPS[name][1] < 1  # points outside are among the maps
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_label_interpolation_equals_the_indicators(name):
    shape, size = (33, 28, 37), (20, 24, 18)
    label = label_map(shape)
    matrix, offset = affine(name, shape, size)
    offset = offset + 0.0137  # away from exact ties, which rounding decides
    out = affine_labels(torch.from_numpy(label), torch.from_numpy(matrix), torch.from_numpy(offset), size)
    expected = reference_labels(label, matrix, offset, size)
    np.testing.assert_array_equal(out, expected)
    assert len(np.unique(expected)) >= 4


def test_labels_tie_to_the_larger_and_no_winner_is_background():
    label = torch.zeros(2, 2, 2, dtype=torch.int16)
    label[1] = 3
    middle = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    assert affine_labels(label, torch.eye(3, dtype=torch.float64), middle, (1, 1, 1)).item() == 3
    label = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.int16)
    middle = torch.full((3,), 0.5, dtype=torch.float64)
    assert affine_labels(label, torch.eye(3, dtype=torch.float64), middle, (1, 1, 1)).item() == 0


def test_spline_at_voxel_centers_is_the_voxel_and_outside_is_zero():
    positions = torch.tensor([-0.01, 0.0, 3.0, 9.0, 9.01], dtype=torch.float64)
    expected = np.zeros((5, 10))
    expected[1, 0] = expected[2, 3] = expected[3, 9] = 1
    np.testing.assert_allclose(spline_matrix(positions, 10), expected, atol=1e-12)


def test_products_along_axes_leave_other_axes_alone():
    x = torch.from_numpy(volume((4, 5, 6)))
    a, c = torch.rand(3, 4, dtype=torch.float64), torch.rand(7, 6, dtype=torch.float64)
    torch.testing.assert_close(apply_along_axes(x, [a, None, c]), torch.einsum("ax,cz,nxyz->nayc", a, c, x))
