"""Metrics of one case: values computed by hand, and those of independent implementations."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from helpers.reference import load_reference
from helpers.segmentations import make_blobs
from scipy import ndimage

from mednext_monai.evaluation import Labels, score_case

RECORDED = load_reference("surface_metrics")["cases"]
ONE = Labels({"one": 1})


def score(prediction, reference, spacing=(1, 1, 1), labels=ONE, **options):
    (row,) = score_case("case", prediction, reference, spacing, labels, **options)
    return row


def cubes(shift: int, shape=(16, 12, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Return two boxes of 6 x 4 x 4 voxels, one shifted along the first axis."""
    prediction, reference = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
    prediction[3 + shift : 9 + shift, 4:8, 4:8] = 1
    reference[3:9, 4:8, 4:8] = 1
    return prediction, reference


def test_counts_dice_and_volumes_by_hand():
    prediction, reference = cubes(2)
    prediction[9, 4, 4] = 0  # 95 voxels, 64 of them in the reference
    row = score(prediction, reference, (0.5, 2, 3))
    assert (row.case, row.name, row.note) == ("case", "one", "")
    assert (row.true_positives, row.false_positives, row.false_negatives) == (64, 31, 32)
    assert row.true_negatives == 16 * 12 * 12 - 127
    assert row.dice == 128 / 191
    assert row.volume_ml == pytest.approx(0.285) and row.reference_ml == pytest.approx(0.288)
    assert row.volume_difference_ml == pytest.approx(-0.003)
    assert row.relative_volume_difference == pytest.approx(-1 / 96)


def test_distances_follow_the_spacing_in_array_order():
    prediction, reference = cubes(2)
    assert score(prediction, reference).hd95_mm == 2
    assert score(prediction, reference, (0.5, 1, 1)).hd95_mm == 1
    assert score(prediction, reference, (3, 1, 1)).hd95_mm == 6
    assert score(prediction, reference, (1, 5, 5)).hd95_mm == 2
    turned = [array.transpose(2, 1, 0).copy() for array in (prediction, reference)]
    assert score(*turned, (1, 1, 3)).hd95_mm == 6


def test_surface_dice_tolerance_in_mm_and_in_voxels():
    prediction, reference = cubes(1)
    assert score(prediction, reference).surface_dice == 1
    assert score(prediction, reference, tolerance=0.9).surface_dice < 1
    assert score(prediction, reference, (2, 2, 2)).surface_dice < 1
    assert score(prediction, reference, (2, 2, 2), tolerance=2).surface_dice == 1
    assert score(prediction, reference, (2, 2, 2), tolerance_in_voxels=True).surface_dice == 1
    assert score(prediction, reference, (0.1, 0.1, 0.1), tolerance=0.1).surface_dice == 1
    assert score(reference, reference, tolerance=0).surface_dice == 1


def test_no_value_where_both_are_empty_and_zero_where_one_is():
    prediction, reference = cubes(0)
    empty = np.zeros_like(prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both, no_prediction, no_reference = score(empty, empty), score(empty, reference), score(prediction, empty)
    assert all(math.isnan(value) for value in (both.dice, both.surface_dice, both.hd95_mm))
    assert both.note == "absent in both" and both.true_negatives == empty.size
    assert (no_prediction.dice, no_prediction.surface_dice) == (0, 0) and math.isnan(no_prediction.hd95_mm)
    assert no_prediction.note == "absent in the prediction" and no_prediction.relative_volume_difference == -1
    assert (no_reference.dice, no_reference.surface_dice) == (0, 0) and math.isnan(no_reference.hd95_mm)
    assert no_reference.note == "absent in the reference" and math.isnan(no_reference.relative_volume_difference)


def test_a_region_unites_its_classes():
    prediction, reference = cubes(0)
    prediction[3:5][prediction[3:5] == 1] = 2  # classes are confused, their union is right
    labels = Labels({"one": 1, "two": 2}, {"whole": [1, 2]})
    one, two, whole = score_case("case", prediction, reference, (1, 1, 1), labels)
    assert [row.name for row in (one, two, whole)] == ["one", "two", "whole"]
    assert (one.dice, two.dice, whole.dice) == (2 * 64 / 160, 0, 1) and whole.hd95_mm == 0


def test_ignored_voxels_are_excluded_from_every_count():
    prediction, reference = cubes(0)
    prediction[10:14] = 1
    reference[10:14] = 7
    row = score(prediction, reference, labels=Labels({"one": 1}, ignore=7))
    assert (row.dice, row.surface_dice, row.hd95_mm) == (1, 1, 0)
    assert row.true_positives + row.true_negatives == 12 * 12 * 12 and row.false_positives == 0
    negative = np.where(reference == 7, -1, reference).astype(np.int8)
    assert score(prediction, negative, labels=Labels({"one": 1}, ignore=-1)) == row


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_in_two_dimensions(axis):
    prediction, reference = (np.expand_dims(mask[:, :, 6], axis) for mask in cubes(2))
    spacing = np.insert([1.5, 1.0], axis, 50.0)
    row = score(prediction, reference, spacing)
    assert row.hd95_mm == 3  # in 3D, every voxel would be at the surface
    assert row.surface_dice < 1 and row.dice == pytest.approx(2 / 3)
    assert score(prediction, reference, spacing, tolerance=3).surface_dice == 1


def test_a_line_and_a_single_voxel():
    voxel = np.ones((1, 1, 1), np.int8)
    row = score(voxel, voxel, (1, 2, 3))
    assert (row.dice, row.surface_dice, row.hd95_mm) == (1, 1, 0)
    line = np.ones((5, 1, 1), np.int8)
    assert score(line, line).hd95_mm == 0


def test_masks_that_touch_the_border_are_not_cut_off():
    reference = np.ones((8, 8, 8), np.int8)
    prediction = reference.copy()
    prediction[0] = 0
    assert score(prediction, reference).hd95_mm == 1 and score(prediction, reference).surface_dice == 1
    assert score(reference, reference).hd95_mm == 0


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{len(case['shape'])}D-{case['seed']}")
def test_equal_to_recorded_figures_of_surface_distance_and_medpy(case):
    masks = make_blobs(case["seed"], case["shape"])
    spacing = case["spacing"]
    if len(spacing) == 2:
        masks, spacing = [mask[:, None] for mask in masks], [spacing[0], 9.0, spacing[1]]
    prediction, reference = (mask.astype(np.int8) for mask in masks)
    row = score(prediction, reference, spacing)
    assert row.dice == pytest.approx(case["dice"], abs=1e-12)
    assert row.surface_dice == pytest.approx(case["surface_dice_1mm"], abs=1e-6)
    assert row.hd95_mm == pytest.approx(case["hd95_mm"], rel=1e-6)
    assert row.hd95_mm >= case["hd95_pooled_mm"] - 1e-6
    assert score(prediction, reference, spacing, tolerance=2).surface_dice == pytest.approx(
        case["surface_dice_2mm"], abs=1e-6
    )
    one_voxel = score(prediction, reference, spacing, tolerance_in_voxels=True)
    assert one_voxel.surface_dice == pytest.approx(case["surface_dice_1voxel"], abs=1e-6)
    assert one_voxel.hd95_mm == row.hd95_mm


def test_equal_to_surface_distance():
    reason = "surface-distance is not installed; its recorded figures are compared"
    metrics = pytest.importorskip("surface_distance.metrics", reason=reason)
    for seed in range(10, 20):
        spacing = np.random.RandomState(seed).uniform(0.4, 3, 3).tolist()
        predicted, present = make_blobs(seed, (22, 18, 16))
        distances = metrics.compute_surface_distances(present, predicted, spacing)
        row = score(predicted.astype(np.int8), present.astype(np.int8), spacing, tolerance=1.5)
        expected = metrics.compute_surface_dice_at_tolerance(distances, 1.5)
        assert row.surface_dice == pytest.approx(expected, abs=1e-6)
        assert row.dice == pytest.approx(metrics.compute_dice_coefficient(present, predicted), abs=1e-12)


def test_hd95_is_the_larger_percentile_of_the_distances_between_border_voxels():
    for seed in range(20, 26):
        spacing = (0.7, 1.0, 2.5)
        masks = make_blobs(seed, (22, 18, 16))
        borders = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
        directed = [
            np.percentile(ndimage.distance_transform_edt(~b, sampling=spacing)[a], 95)
            for a, b in (borders, borders[::-1])
        ]
        row = score(*(mask.astype(np.int8) for mask in masks), spacing)
        assert row.hd95_mm == pytest.approx(max(directed), rel=1e-5)  # MONAI returns float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((2, 2, 3), np.int8)}, "two volumes of one shape"),
        ({"prediction": np.zeros((2, 2, 2))}, "must be integers, got float64"),
        ({"prediction": np.full((2, 2, 2), 4, np.int8)}, r"label value\(s\) \[4\]; the classes are \[1\]"),
        ({"prediction": np.full((2, 2, 2), -4, np.int8)}, "negative label value -4"),
        ({"spacing": (1, 0, 1)}, "spacing must be three positive numbers"),
        ({"spacing": (1, math.nan, 1)}, "spacing must be three positive numbers"),
        ({"tolerance": -1}, "tolerance must be a number of at least 0, got -1"),
        ({"tolerance": math.nan}, "tolerance must be"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    zeros = np.zeros((2, 2, 2), np.int8)
    arguments = {"case": "c", "prediction": zeros, "reference": zeros, "spacing": (1, 1, 1), "labels": ONE}
    with pytest.raises(ValueError, match=message):
        score_case(**{**arguments, **change})
