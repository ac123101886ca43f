"""The promises: crop, resampling and normalization as published, on arrays and as MONAI transforms, and the exact way
back to the grid, affine and header of the file."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_monai.preprocessing.normalization import normalize_channels, schemes_at

CT = {"mean": 50.0, "sd": 20.0, "p005": -30.0, "p995": 160.0}


def test_normalization():
    image = np.random.RandomState(0).rand(4, 5, 6, 7).astype(np.float32) * 300 - 100
    inside = np.random.RandomState(1).rand(5, 6, 7) < 0.5
    result = normalize_channels(image, ["CT", "zscore", "masked_zscore", "none"], {0: CT}, inside)
    exact = image.astype(np.float64)
    np.testing.assert_allclose(result[0], (np.clip(exact[0], -30, 160) - 50) / 20, atol=1e-5)
    np.testing.assert_allclose(result[1], (exact[1] - exact[1].mean()) / exact[1].std(), atol=1e-5)
    masked = (exact[2] - exact[2][inside].mean()) / exact[2][inside].std()
    np.testing.assert_allclose(result[2], np.where(inside, masked, 0), atol=1e-5)
    np.testing.assert_array_equal(result[3], image[3])
    np.testing.assert_array_equal(normalize_channels(np.full((1, 2, 2, 2), 7), ["zscore"]), 0)
    for schemes, message in (
        (["zscore"] * 3, "one scheme per channel"),
        (["z"] * 4, "must be one of"),
        (["CT"] * 4, "needs the intensity"),
        (["masked_zscore"] * 4, "needs the mask"),
    ):
        with pytest.raises(ValueError, match=message):
            normalize_channels(image, schemes)


def test_a_masked_ct_is_the_ct_with_zeros_outside_the_mask():
    image = np.random.RandomState(0).rand(1, 5, 6, 7).astype(np.float32) * 300 - 100
    inside = np.random.RandomState(1).rand(5, 6, 7) < 0.5
    plain = normalize_channels(image, ["CT"], {0: CT})
    masked = normalize_channels(image, ["masked_CT"], {0: CT}, inside)
    np.testing.assert_array_equal(masked, np.where(inside, plain, 0))
    with pytest.raises(ValueError, match="mask"):
        normalize_channels(image, ["masked_CT"], {0: CT})
    with pytest.raises(ValueError, match="needs the intensity"):
        normalize_channels(image, ["masked_CT"], None, inside)


def test_the_schemes_of_nnunet_v2_leave_what_is_outside_the_mask():
    image = np.random.RandomState(0).rand(3, 5, 6, 7).astype(np.float32) * 300 - 100
    inside = np.random.RandomState(1).rand(5, 6, 7) < 0.5
    result = normalize_channels(image, ["CT_v2", "zscore_v2", "masked_zscore_v2"], {0: CT}, inside)
    np.testing.assert_array_equal(result[:2], normalize_channels(image[:2], ["CT", "zscore"], {0: CT}))
    masked = normalize_channels(image[2:], ["masked_zscore"], inside=inside)[0]
    np.testing.assert_array_equal(result[2], np.where(inside, masked, image[2]))


def test_each_scheme_has_its_place_before_or_after_resampling():
    schemes = ["CT", "zscore_v2", "none", "masked_zscore_v2"]
    assert schemes_at(schemes, early=True) == ["none", "zscore_v2", "none", "masked_zscore_v2"]
    assert schemes_at(schemes, early=False) == ["CT", "none", "none", "none"]
