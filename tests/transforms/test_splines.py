"""Interpolation of images and labels gives the numbers of SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.augmentation import MAPS, affine, label_map, volume
from scipy import ndimage

from mednext_monai.transforms.splines import (
    affine_labels,
    affine_linear,
    affine_spline,
    apply_along_axes,
    spline_matrix,
)


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
@pytest.mark.parametrize("shape, size", [((33, 28, 37), (20, 24, 18)), ((33, 1, 37), (20, 1, 18))])
def test_linear_interpolation_equals_scipy(name, shape, size):
    image = volume(shape, 2)
    matrix, offset = affine(name, shape, size)
    if 1 in shape:  # a slice is not turned out of its plane
        matrix[1], matrix[:, 1], offset[1] = 0, 0, 0
    expected = [ndimage.affine_transform(c, matrix, offset, size, order=1, mode="grid-constant") for c in image]
    out = affine_linear(torch.from_numpy(image).float(), torch.from_numpy(matrix), torch.from_numpy(offset), size)
    np.testing.assert_allclose(out, np.stack(expected), atol=1e-4)


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
