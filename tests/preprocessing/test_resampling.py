"""The promise: resampling computes what the original MedNeXt computes, on any grid and in any axis order."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference import load_reference
from scipy import ndimage

from mednext_monai.preprocessing import resampling
from mednext_monai.preprocessing.resampling import (
    resample_image,
    resample_labels,
    resample_to_labels,
    resampled_shape,
    separate_axis,
)

RECORDED = load_reference("preprocess")
# Weights of 1/6 and 5/6 sum to equal amounts for two labels at these many voxels, and the rounding of the original's
# float64 sums decides which wins there: (label, voxels) by which our counts, where the nearest voxel decides, differ.
DECIDED_BY_ROUNDING = {"isotropic_up": {"0": 5, "1": -9, "2": 4, "3": 0}}


def recorded_volume(shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of tests/data/preprocess.json, in its (z, y, x) order."""
    z, y, x = np.meshgrid(*(np.arange(count) for count in shape), indexing="ij")
    image = 100 * np.sin(0.31 * z) * np.cos(0.23 * y) + 40 * np.sin(0.4 * x + 0.1 * y)
    u_z, u_y, u_x = (index / count - 0.5 for index, count in zip((z, y, x), shape))
    radius = np.sqrt((1.1 * u_z) ** 2 + u_y**2 + (0.9 * u_x) ** 2)
    label = np.zeros(shape, dtype=np.int8)
    label[radius < 0.40] = 1
    label[radius < 0.22] = 2
    label[(u_z > 0.35) & (u_y > 0.3)] = 3
    return image.astype(np.float32), label


@pytest.mark.parametrize("reverse", [False, True], ids=["zyx", "xyz"])
@pytest.mark.parametrize("name", RECORDED)
def test_equals_the_original(name, reverse):
    recorded = RECORDED[name]
    image, label = recorded_volume(recorded["shape_zyx"])
    spacing = recorded["spacing_zyx"]
    if reverse:
        image, label, spacing = image.T, label.T, spacing[::-1]
    shape, axis = resampled_shape(image.shape, spacing), separate_axis(spacing)
    image, label = resample_image(image[None], shape, axis)[0], resample_labels(label, shape, axis)
    if reverse:
        image, label = image.T, label.T

    assert list(image.shape) == list(label.shape) == recorded["resampled_shape"]
    np.testing.assert_allclose(image.ravel()[recorded["index"]], recorded["image_value"], rtol=0, atol=2e-5)
    figures = [image.mean(dtype=np.float64), image.std(dtype=np.float64), image.min(), image.max()]
    expected = [recorded[f"image_{figure}"] for figure in ("mean", "std", "min", "max")]
    np.testing.assert_allclose(figures, expected, rtol=0, atol=2e-5)
    counts = {str(value): int((label == value).sum()) for value in range(4)}
    differences = DECIDED_BY_ROUNDING.get(name, {})
    assert counts == {key: count + differences.get(key, 0) for key, count in recorded["label_count"].items()}
    np.testing.assert_array_equal(label.ravel()[recorded["index"]], recorded["label_value"])


def zoom(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What skimage.transform.resize does without anti-aliasing, in float64."""
    factors = np.divide(shape, array.shape)
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


GRIDS = [((7, 12, 9), (13, 5, 9)), ((1, 6, 4), (5, 6, 3)), ((9, 8, 7), (4, 16, 1)), ((150, 3, 4), (201, 2, 5))]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_image_is_cubic_and_clipped(old, new):
    image = np.random.RandomState(0).randn(2, *old) * 100
    expected = [np.clip(zoom(channel, new, 3), channel.min(), channel.max()) for channel in image.astype(np.float32)]
    result = resample_image(image, new)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    assert result.min() >= np.float32(image.min()) and result.max() <= np.float32(image.max())


@pytest.mark.parametrize("slab_voxels", [2**22, 20])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_label_has_the_largest_linear_weight(old, new, slab_voxels, monkeypatch):
    monkeypatch.setattr(resampling, "SLAB_VOXELS", slab_voxels)
    labels = np.random.RandomState(1).choice([-1, 0, 2, 7], size=old).astype(np.int16)
    values = np.unique(labels)
    weights = np.stack([zoom(labels == value, new, 1) for value in values])
    result = resample_labels(labels, new)
    assert result.dtype == labels.dtype

    own = np.take_along_axis(weights, np.searchsorted(values, result)[None], axis=0)[0]
    np.testing.assert_allclose(own, weights.max(axis=0), rtol=0, atol=1e-6)
    tied = np.isclose(weights, weights.max(axis=0), rtol=0, atol=1e-9)
    nearest = zoom(labels, new, 0)
    nearest_is_tied = np.take_along_axis(tied, np.searchsorted(values, nearest)[None], axis=0)[0]
    expected = np.where(nearest_is_tied, nearest, values[tied.argmax(axis=0)])
    np.testing.assert_array_equal(result, expected)


def test_ties_go_to_the_nearest_voxel():
    assert resample_labels(np.array([[[0, 1, 1, 0]]]), (1, 1, 2)).tolist() == [[[1, 0]]]
    block = np.array([3, 1, 1, 1, 2, 2, 2, 0]).reshape(2, 2, 2)  # 1 and 2 tie; the nearest voxel, the last, is a 0
    assert resample_labels(block, (1, 1, 1)).item() == 1


@pytest.mark.parametrize("slab_voxels", [2**22, 20])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_probabilities_are_linear(old, new, slab_voxels, monkeypatch):
    monkeypatch.setattr(resampling, "SLAB_VOXELS", slab_voxels)
    probabilities = np.random.RandomState(2).dirichlet(np.ones(3), size=old).transpose(3, 0, 1, 2).astype(np.float32)
    expected = np.argmax([zoom(values, new, 1) for values in probabilities], axis=0)
    result = resample_to_labels(probabilities, new)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)
    linear = np.stack([zoom(values, new, 1) for values in probabilities])
    np.testing.assert_allclose(resample_image(probabilities, new, order=1), linear, rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [2, 5, 11])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_separate_axis_takes_the_nearest_slice(axis, depth):
    random = np.random.RandomState(3)
    image, labels = random.randn(1, 5, 6, 8), random.randint(0, 3, size=(5, 6, 8))
    old, plane = image.shape[1 + axis], (4, 9)
    shape = (*plane[:axis], depth, *plane[axis:])
    slices = [int((index + 0.5) * old / depth) for index in range(depth)]
    float_image = image.astype(np.float32)
    per_slice = [float_image[0].take(index, axis=axis) for index in slices]
    expected = np.stack([np.clip(zoom(part, plane, 3), part.min(), part.max()) for part in per_slice], axis=axis)
    np.testing.assert_allclose(resample_image(image, shape, axis)[0], expected, rtol=0, atol=1e-6)

    planes = [resample_labels(labels.take([index], axis=axis), shape_with(shape, axis, 1)) for index in slices]
    np.testing.assert_array_equal(resample_labels(labels, shape, axis), np.concatenate(planes, axis=axis))
    probabilities = random.rand(2, 5, 6, 8)
    linear = np.stack([[zoom(values.take(index, axis=axis), plane, 1) for index in slices] for values in probabilities])
    expected = np.moveaxis(linear.argmax(axis=0), 0, axis)
    np.testing.assert_array_equal(resample_to_labels(probabilities, shape, axis), expected)


def shape_with(shape, axis, count):
    return (*shape[:axis], count, *shape[axis + 1 :])


def test_unchanged_shape_changes_nothing():
    image = np.array([[[[1.0, np.nan], [3.0, 4.0]]]])
    np.testing.assert_array_equal(resample_image(image, (1, 2, 2)), [[[[1, 0], [3, 4]]]])
    labels = np.arange(8).reshape(2, 2, 2)
    assert resample_labels(labels, (2, 2, 2)) is labels


def test_shapes_and_separate_axis():
    assert resampled_shape((40, 33, 5), (0.8, 1.3, 0.5)) == (32, 43, 2)  # 2.5 rounds to even
    assert resampled_shape((40, 33, 5), (0.8, 1.3, 0.01), (2, 1, 1)) == (16, 43, 1)
    assert separate_axis((0.7, 0.7, 5)) == 2
    assert separate_axis((1, 1, 3)) is None
    assert separate_axis((0.24, 1.25, 1.25)) is None
    assert separate_axis((1, 1.5, 1), (1, 4, 1)) == 1
    assert separate_axis((np.nextafter(3.0, 4), 1, 1)) is None  # rounding of an affine is no anisotropy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resampled_shape((4, 4, 4), (1, 0, 1)), "spacing must be 3 positive numbers"),
        (lambda: resample_image(np.ones((1, 2, 2, 2)), (2, 2)), "shape must be 3 positive numbers"),
        (lambda: resample_image(np.full((1, 2, 2, 2), np.inf), (2, 2, 2)), "infinite"),
        (lambda: resample_labels(np.ones((2, 2, 2)), (3, 3, 3)), "integers"),
        (lambda: resample_to_labels(np.ones((1, 2, 2, 2)), (3, 3, 3)), "at least 2 classes"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
