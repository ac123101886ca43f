"""The exact way back from the preprocessed grid to the grid of the file."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from helpers.datasets import example, rotated_affine

from mednext_monai.preprocessing import resampling
from mednext_monai.preprocessing.case import preprocess_case
from mednext_monai.preprocessing.geometry import (
    Geometry,
    reorient,
    restore_axes,
    restore_image,
    restore_labels,
    restore_probabilities,
    restore_slabs,
    spacing_of,
)

CT = {"mean": 50.0, "sd": 20.0, "p005": -30.0, "p995": 160.0}


SETTINGS = {"spacing": [1, 1, 1], "normalization": ["CT", "masked_zscore"], "intensity": {"0": CT}}


def test_affine_keeps_the_outer_borders():
    geometry = preprocess_case(*example(), rotated_affine(), SETTINGS).geometry
    for corner, resampled in (
        (np.subtract(geometry.start, 0.5), np.full(3, -0.5)),
        (np.subtract(geometry.stop, 0.5), np.subtract(geometry.resampled_shape, 0.5)),
    ):
        place = rotated_affine() @ np.append(corner, 1)
        np.testing.assert_allclose(geometry.resampled_affine @ np.append(resampled, 1), place, atol=1e-9)
    assert spacing_of(rotated_affine()) == tuple(float(np.float32(value)) for value in (2.0, 0.7, 1.2))
    assert Geometry.from_dict(geometry.to_dict()) == geometry


@pytest.mark.parametrize(
    ("spacing", "target"), [((1, 1, 1), (1, 1, 1)), ((5, 0.8, 0.8), (1, 0.8, 0.8))], ids=["unchanged", "separate"]
)
def test_labels_return_exactly_where_no_voxel_is_lost(spacing, target):
    image, label = example()
    label[0, 0, 0] = 0  # outside the crop nothing returns
    case = preprocess_case(image, label, rotated_affine(spacing), {**SETTINGS, "spacing": target})
    np.testing.assert_array_equal(restore_labels(case.label, case.geometry), label)
    one_hot = np.stack([case.label <= 0, case.label == 1, case.label == 2]).astype(np.float32)
    np.testing.assert_array_equal(restore_probabilities(one_hot, case.geometry), label)


@pytest.mark.parametrize(("spacing", "dice"), [((1.5, 1, 2), 0.97), ((0.8, 0.8, 3.5), 0.95)])
def test_a_ball_survives_the_round_trip(spacing, dice):
    """A ball of 15 mm radius through the 1 mm grid and back, on coarser, finer and separate axes."""
    shape = [int(44 / value) for value in spacing]
    index = np.indices(shape).T * spacing
    ball = (np.linalg.norm(index - index.mean(axis=(0, 1, 2)), axis=-1) < 15).T.astype(np.int8)
    case = preprocess_case(np.ones((2, *shape), np.float32), ball, rotated_affine(spacing), SETTINGS)
    restored = restore_labels(case.label, case.geometry)
    assert 2 * (restored & ball).sum() / (restored.sum() + ball.sum()) > dice


def test_restoring_checks_the_shape():
    geometry = preprocess_case(*example(), rotated_affine(), SETTINGS).geometry
    with pytest.raises(ValueError, match=r"shape \(18, 13, 19\), got \(18, 13, 18\)"):
        restore_labels(np.zeros((18, 13, 18), dtype=np.int8), geometry)


@pytest.mark.parametrize("axcodes", ["RAS", "SPL", "IRA"])
def test_reoriented_axes_are_restored(axcodes):
    array = np.arange(2 * 14 * 22 * 17).reshape(2, 14, 22, 17)
    turned, affine = reorient(array, rotated_affine(), axcodes)
    assert "".join(nibabel.aff2axcodes(affine)) == axcodes
    np.testing.assert_array_equal(restore_axes(turned, rotated_affine(), axcodes), array)


@pytest.mark.parametrize("spacing", [(2.0, 0.7, 1.2), (0.5, 0.5, 5.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("slab_voxels", [2**22, 500])
def test_classes_are_those_of_the_restored_probabilities(spacing, slab_voxels, monkeypatch):
    """Class by class in slabs, or all probabilities at once: one answer, to the last voxel."""
    monkeypatch.setattr(resampling, "SLAB_VOXELS", slab_voxels)
    geometry = preprocess_case(example()[0], None, rotated_affine(spacing), SETTINGS).geometry
    shape = geometry.resampled_shape
    probabilities = np.random.RandomState(0).dirichlet(np.ones(5), shape).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities[:, : shape[0] // 2] = 0.2  # ties of all classes
    whole = restore_image(probabilities, geometry)
    assert whole.shape == (5, 14, 22, 17) and whole.dtype == np.float32
    np.testing.assert_array_equal(restore_probabilities(probabilities, geometry), whole.argmax(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_without_a_target_spacing_is_kept_and_restored_in_slabs_along_it(axis):
    spacing = [1.5, 1.5, 1.5]
    spacing[axis] = 6.0
    target: list[float | None] = [1.0, 1.0, 1.0]
    target[axis] = None
    image = example()[0]
    geometry = preprocess_case(image, None, rotated_affine(spacing), {**SETTINGS, "spacing": target}).geometry
    cropped, shape = geometry.cropped_shape, geometry.resampled_shape
    assert shape == tuple(n if a == axis else round(1.5 * n) for a, n in enumerate(cropped))
    assert (geometry.axis, geometry.changed_axis) == (axis, None)
    published = preprocess_case(image, None, rotated_affine(spacing), SETTINGS).geometry
    assert published.changed_axis == axis and published.resampled_shape[axis] == 6 * cropped[axis]
    probabilities = np.random.RandomState(0).dirichlet(np.ones(3), shape).transpose(3, 0, 1, 2).astype(np.float32)
    slabs = np.array_split(probabilities, 3, axis=1 + axis)
    np.testing.assert_array_equal(
        restore_slabs(slabs, geometry, axis), restore_image(probabilities, geometry).argmax(0)
    )
    with pytest.raises(ValueError, match="along must differ from the separate axis"):
        restore_slabs(slabs, published, axis)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [((1000, 1000, 1000), "10000 x 10000 x 10000 voxels"), ((1e5, 1, 1), "1000000 x 10 x 10 voxels, .* 32767 along")],
)
def test_a_case_that_no_memory_holds_is_refused_before_it_is_resampled(spacing, message):
    """As of a file in millimeters that states meters."""
    image = np.ones((2, 10, 10, 10), np.float32)
    with pytest.raises(ValueError, match=f"resampled to 1 x 1 x 1 mm, it would have {message}.*unit of length right"):
        preprocess_case(image, None, np.diag([*spacing, 1.0]), SETTINGS)
