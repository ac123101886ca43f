"""Crop, resampling and normalization of a case as published, on arrays."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from helpers.datasets import example, rotated_affine
from helpers.nnunet import make_plans, needs_nnunet
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage

from mednext_monai.preprocessing.case import check_settings, preprocess_case

CT = {"mean": 50.0, "sd": 20.0, "p005": -30.0, "p995": 160.0}


SETTINGS = {"spacing": [1, 1, 1], "normalization": ["CT", "masked_zscore"], "intensity": {"0": CT}}


def test_settings_are_checked():
    assert check_settings({**SETTINGS, "patch_size": 128})["intensity"] == {0: CT}
    for change, message in (
        ({"spacing": [1, 1]}, "spacing"),
        ({"normalization": ["ct", "zscore"]}, "normalization"),
        ({"intensity": {"0": {"mean": 1}}}, r"lacks \['sd', 'p005', 'p995'\]"),
        ({"intensity": {"0": {**CT, "sd": 0}}}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings({**SETTINGS, **change})
    with pytest.raises(ValueError, match="image has 3"):
        check_settings(SETTINGS, channels=3)


def test_case_against_a_direct_computation():
    image, label = example()
    result = preprocess_case(image, label, rotated_affine(), SETTINGS)
    start, stop = (2, 4, 0), (11, 22, 16)
    assert (result.geometry.start, result.geometry.stop) == (start, stop)
    assert result.geometry.resampled_shape == (18, 13, 19)  # 9 × 2 mm, 18 × 0.7 mm = 12.6, 16 × 1.2 mm = 19.2
    box = tuple(slice(low, high) for low, high in zip(start, stop))
    inside = ndimage.binary_fill_holes((image != 0).any(axis=0))[box]
    assert not inside.all() and inside[4, 5, 7]  # the corner is outside, the hole is inside
    with_outside = np.where(inside | (label[box] > 0), label[box], -1)
    factors = np.divide((18, 13, 19), inside.shape)
    weights = [
        ndimage.zoom((with_outside == value) * 1.0, factors, order=1, mode="nearest", grid_mode=True)
        for value in (-1, 0, 1, 2)
    ]
    unique = np.sort(weights, axis=0)[-1] - np.sort(weights, axis=0)[-2] > 1e-9
    np.testing.assert_array_equal(result.label[unique], np.argmax(weights, axis=0)[unique] - 1)
    cubic = [
        np.clip(
            ndimage.zoom(channel[box].astype(float), factors, order=3, mode="nearest", grid_mode=True),
            channel[box].min(),
            channel[box].max(),
        )
        for channel in image
    ]
    np.testing.assert_allclose(result.image[0], (np.clip(cubic[0], -30, 160) - 50) / 20, atol=1e-4)
    mask = result.label >= 0
    masked = (cubic[1] - cubic[1][mask].mean()) / cubic[1][mask].std()
    np.testing.assert_allclose(result.image[1], np.where(mask, masked, 0), atol=1e-4)


def test_orientation_in_the_settings_equals_monais_orientation():
    """Axes reordered and flipped before all else, with a spacing that differs by axis."""
    settings = {**SETTINGS, "orientation": "SPL", "spacing": [1.0, 1.5, 0.8]}
    image, label = example()
    case = preprocess_case(image, label, rotated_affine(), settings)
    turn = Orientation(axcodes="SPL", labels=None)
    turned, turned_label = (
        turn(MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(rotated_affine())))
        for array in (image, label[None])
    )
    expected = preprocess_case(
        turned.numpy(), turned_label.numpy()[0], turned.affine.numpy(), {**settings, "orientation": None}
    )
    np.testing.assert_array_equal(case.image, expected.image)
    np.testing.assert_array_equal(case.label, expected.label)
    np.testing.assert_allclose(case.geometry.resampled_affine, expected.geometry.resampled_affine, atol=1e-4)
    assert nibabel.aff2axcodes(case.geometry.affine) == ("S", "P", "L") != nibabel.aff2axcodes(rotated_affine())
    assert case.geometry.shape == (17, 22, 14)
    for wrong in ("RAA", "RA", "XYZ", 3):
        with pytest.raises(ValueError, match="orientation must be axis codes"):
            check_settings({**SETTINGS, "orientation": wrong})


def test_voxels_without_annotation_keep_their_label_and_do_not_change_the_image():
    image, label = example()
    complete = preprocess_case(image, label, rotated_affine(), SETTINGS)
    sparse = np.where(np.arange(label.shape[2]) % 3 == 0, label, np.int8(7))  # two of three slices are not annotated
    result = preprocess_case(image, sparse, rotated_affine(), {**SETTINGS, "ignore_label": 7})
    np.testing.assert_array_equal(result.image, complete.image)  # the mask of channel 1 included
    assert result.label.dtype == complete.label.dtype and set(np.unique(result.label)) == {-1, 0, 1, 2, 7}
    assert 0.5 < (result.label == 7).mean() < 0.8
    outside = complete.label == -1
    assert (result.label[outside] == 7).any() and set(np.unique(result.label[outside])) <= {-1, 0, 7}
    assert check_settings({**SETTINGS, "ignore_label": None}) == check_settings(SETTINGS)  # stored under the same name
    with pytest.raises(ValueError, match="ignore_label must be a positive integer, or None, got 0"):
        check_settings({**SETTINGS, "ignore_label": 0})


def test_schemes_of_nnunet_v2_normalize_before_resampling():
    image, label = example()
    image[1, 6, 10, 10] = np.nan  # counts as 0
    settings = {**SETTINGS, "normalization": ["CT_v2", "masked_zscore_v2"]}
    result = preprocess_case(image, label, rotated_affine(), settings)
    published = preprocess_case(image, label, rotated_affine(), SETTINGS)
    box = tuple(slice(a, b) for a, b in zip(result.geometry.start, result.geometry.stop))
    inside = ndimage.binary_fill_holes((image != 0).any(axis=0))[box] | (label[box] > 0)
    exact = np.nan_to_num(image)[(slice(None), *box)].astype(np.float64)
    ct = (np.clip(exact[0], -30, 160) - 50) / 20
    standardized = (exact[1] - exact[1][inside].mean()) / exact[1][inside].std()
    early = np.stack([ct, np.where(inside, standardized, exact[1])])
    factors = np.divide(result.image.shape[1:], inside.shape)
    cubic = [
        np.clip(ndimage.zoom(c, factors, order=3, mode="nearest", grid_mode=True), c.min(), c.max()) for c in early
    ]
    np.testing.assert_allclose(result.image, cubic, atol=1e-4)
    np.testing.assert_array_equal(result.label, published.label)
    assert np.abs(result.image - published.image).max() > 0.1


@needs_nnunet
@pytest.mark.parametrize("affine", [np.diag([2.0, 0.7, 1.2, 1]), np.diag([-0.8, 0.8, 4.0, 1])], ids=["cubic", "thick"])
def test_schemes_of_nnunet_v2_give_what_its_preprocessor_gives(affine):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    image, label = example()
    plans = make_plans(
        (1, 2, 0), spacing=[1.0, 1.5, 0.9], normalization_schemes=["CTNormalization", "ZScoreNormalization"]
    )
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [False, True]
    statistics = {"mean": 50.0, "std": 20.0, "percentile_00_5": -30.0, "percentile_99_5": 160.0}
    plans["foreground_intensity_properties_per_channel"] = {"0": statistics, "1": {}}
    manager = PlansManager(plans)
    properties = {"spacing": np.abs(np.diag(affine))[2::-1].tolist()}
    theirs, their_label, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image.transpose(0, 3, 2, 1),
        label.transpose(2, 1, 0)[None],
        properties,
        manager,
        manager.get_configuration("3d_fullres"),
        {"labels": {"background": 0, "one": 1, "two": 2}},
    )
    spacing = [[1.0, 1.5, 0.9][axis] for axis in (0, 2, 1)]  # of x, y and z: transpose_backward, reversed
    settings = {**SETTINGS, "normalization": ["CT_v2", "masked_zscore_v2"], "spacing": spacing}
    ours = preprocess_case(image, label, affine, settings)
    back = theirs.transpose(0, 2, 3, 1).transpose(0, 3, 2, 1)
    assert ours.image.shape == back.shape
    np.testing.assert_allclose(ours.image, back, atol=2e-4)
    assert np.mean(ours.label != their_label[0].transpose(1, 2, 0).transpose(2, 1, 0)) < 0.01  # ties
