"""Smoothing, lower resolution and gamma: how often, in what range, and the numbers of a float64 computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.augmentation import assert_half_below_one, volume, within
from scipy import ndimage

from mednext_monai.transforms import (
    RandChannelGammad,
    RandChannelLowResolutiond,
    RandChannelSmoothd,
)
from mednext_monai.transforms.intensity import adjust_gamma, lower_resolution, smooth


@pytest.mark.parametrize("sigma", [0.5, 0.61, 0.83, 1.0])
def test_smoothing_equals_scipy(sigma):
    image = volume((19, 14, 22), 1)[0]
    expected = ndimage.gaussian_filter(image, sigma)
    np.testing.assert_allclose(smooth(torch.from_numpy(image), sigma), expected, atol=1e-12)


@pytest.mark.parametrize("zoom", [0.5, 0.63, 0.8, 0.97])
def test_lower_resolution_equals_the_float64_computation(zoom):
    image = volume((24, 17, 30), 1)[0]
    coarse_shape = np.round(np.array(image.shape) * zoom).astype(int)
    pick = [np.floor((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(image.shape, coarse_shape)]
    coarse = image[np.ix_(*pick)]
    expected = ndimage.zoom(coarse, np.array(image.shape) / coarse_shape, order=3, mode="nearest", grid_mode=True)
    expected = np.clip(expected, coarse.min(), coarse.max())
    np.testing.assert_allclose(lower_resolution(torch.from_numpy(image), zoom), expected, atol=1e-10)


def test_lower_resolution_does_not_shift_and_spares_an_axis():
    ramp = torch.arange(32.0, dtype=torch.float64).expand(8, 32, 32).clone()
    out = lower_resolution(ramp, 0.5)
    assert abs((out - ramp)[:, :, 8:-8].mean()) < 0.51  # half-pixel nearest picks the upper of two
    image = torch.from_numpy(volume((16, 16, 12), 1)[0])
    kept = lower_resolution(image, 0.5, keep_axis=2)
    coarse = image[1::2, 1::2]
    np.testing.assert_allclose(kept.amax((0, 1)) <= coarse.amax((0, 1)).max(), True)
    assert torch.equal(lower_resolution(image, 1.0), image)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("gamma", [0.7, 1.43])
def test_gamma_equals_the_float64_formula(gamma, invert):
    x = volume((12, 13, 14), 1)[0] * 3 + 2
    y = -x if invert else x
    span = y.max() - y.min()
    out = ((y - y.min()) / (span + 1e-7)) ** gamma * (span + 1e-7) + y.min()
    out = (out - out.mean()) / (out.std() + 1e-8) * y.std() + y.mean()
    expected = -out if invert else out
    result = adjust_gamma(torch.from_numpy(x).float(), gamma, invert)
    np.testing.assert_allclose(result, expected, atol=2e-5)
    np.testing.assert_allclose([result.mean(), result.std(correction=0)], [x.mean(), x.std()], atol=1e-4)


def test_gamma_of_a_constant_channel_is_finite():
    assert torch.isfinite(adjust_gamma(torch.full((4, 4, 4), 3.0), 0.8)).all()


@pytest.mark.parametrize(
    "transform, prob, channel_prob, low, high",
    [
        (RandChannelSmoothd("image"), 0.2, 0.5, 0.5, 1.0),
        (RandChannelLowResolutiond("image"), 0.25, 0.5, 0.5, 1.0),
        (RandChannelGammad("image"), 0.3, 1.0, None, None),
        (RandChannelGammad("image", prob=0.1, invert=True), 0.1, 1.0, None, None),
    ],
)
def test_channels_are_hit_as_often_and_as_hard_as_published(transform, prob, channel_prob, low, high):
    transform.set_random_state(0)
    n, fired, hits, different = 4000, 0, [], 0
    for _ in range(n):
        transform.randomize(2)
        fired += transform._do_transform
        drawn = [p for p in transform.parameters if p is not None]
        different += len(drawn) == 2 and drawn[0] != drawn[1]
        hits.extend(drawn)
    assert within(fired, n, prob)
    assert within(different, n, prob * channel_prob**2)
    hits = np.array(hits)
    if low is None:
        assert_half_below_one(hits, 0.7, 1.5)
    else:
        assert abs(len(hits) - 2 * n * prob * channel_prob) < 4 * (2 * n * prob * channel_prob) ** 0.5
        assert low <= hits.min() < low + 0.02 and high - 0.02 < hits.max() <= high
        assert abs(hits.mean() - 0.75) < 4 * 0.5 / 12**0.5 / len(hits) ** 0.5


def test_channels_that_are_not_hit_stay_to_the_bit():
    image = volume((10, 10, 10), 3).astype(np.float32)
    transform = RandChannelSmoothd("image", prob=1, channel_prob=0.5).set_random_state(1)
    out = transform({"image": image})["image"]
    hit = [parameter is not None for parameter in transform.parameters]
    assert 0 < sum(hit) < 3
    for channel, changed in enumerate(hit):
        assert np.array_equal(out[channel], image[channel]) != changed
