"""Augmentation: how often, in what range, and the same numbers as a float64 computation for fixed draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.transforms import Compose, RandFlipd
from scipy import ndimage

from mednext_monai.transforms import (
    CleanOutsided,
    RandChannelGammad,
    RandChannelLowResolutiond,
    RandChannelSmoothd,
    RandPatchd,
    RandRotateScaled,
    training_augmentation,
)
from mednext_monai.transforms.intensity import adjust_gamma, lower_resolution, smooth
from mednext_monai.transforms.spatial import SpatialDraw, draw_about_one, interpolate_box, rotation_matrix
from mednext_monai.transforms.splines import affine_labels, affine_spline, apply_along_axes, spline_matrix


def within(count: int, n: int, p: float) -> bool:
    """Whether a fair draw would give this count, all but once in 15000."""
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def volume(shape, channels=2, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((channels, *shape))


def label_map(shape, seed=0) -> np.ndarray:
    smooth_noise = ndimage.gaussian_filter(volume(shape, 1, seed)[0], 2)
    label = np.digitize(smooth_noise, np.quantile(smooth_noise, [0.4, 0.6, 0.8])).astype(np.int16)
    label[: shape[0] // 5] = -1
    return label


def reference_labels(label, matrix, offset, size) -> np.ndarray:
    """Per-label linear indicator, won at 0.5, the later label wins; -1 outside the outermost voxel centres."""
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


def test_spline_at_voxel_centres_is_the_voxel_and_outside_is_zero():
    positions = torch.tensor([-0.01, 0.0, 3.0, 9.0, 9.01], dtype=torch.float64)
    expected = np.zeros((5, 10))
    expected[1, 0] = expected[2, 3] = expected[3, 9] = 1
    np.testing.assert_allclose(spline_matrix(positions, 10), expected, atol=1e-12)


def test_products_along_axes_leave_other_axes_alone():
    x = torch.from_numpy(volume((4, 5, 6)))
    a, c = torch.rand(3, 4, dtype=torch.float64), torch.rand(7, 6, dtype=torch.float64)
    torch.testing.assert_close(apply_along_axes(x, [a, None, c]), torch.einsum("ax,cz,nxyz->nayc", a, c, x))


def test_part_of_the_box_gives_the_same_as_the_box():
    for name in MAPS:
        shape, size = (90, 85, 80), (20, 20, 20)
        image = torch.from_numpy(volume(shape)).float()
        matrix, offset = affine(name, shape, size)
        draw = SpatialDraw(matrix, offset, shape)
        start, extent = draw.needed(size, "image")
        assert np.prod(extent) < 0.5 * np.prod(shape)
        part = image[(slice(None), *(slice(b, b + e) for b, e in zip(start, extent)))].contiguous()
        out = interpolate_box(part, draw, start, size, "image")
        torch.testing.assert_close(out, interpolate_box(image, draw, np.zeros(3), size, "image"), atol=1e-5, rtol=0)


def test_rotation_turns_the_last_axis_first_as_the_original_s_reversed_axes_do():
    a, b, c = 0.3, -0.2, 0.5

    def turn(angle, i, j):
        m = np.eye(3)
        m[i, i] = m[j, j] = np.cos(angle)
        m[i, j], m[j, i] = -np.sin(angle), np.sin(angle)
        return m

    # the original, axes (z, y, x): coordinates (row vectors) times R_first R_second R_third
    original = (turn(c, 1, 2) @ turn(b, 2, 0) @ turn(a, 0, 1)).T
    np.testing.assert_allclose(rotation_matrix((a, b, c)), original[::-1, ::-1], atol=1e-12)


def test_rotation_and_scaling_fire_independently_as_often_as_published():
    transform = RandRotateScaled("image").set_random_state(0)
    n, angles, scales, both = 6000, [], [], 0
    for _ in range(n):
        transform.randomize()
        if transform.angles is not None:
            angles.append(np.degrees(transform.angles))
        if transform.scale is not None:
            scales.append(transform.scale)
        both += transform.angles is not None and transform.scale is not None
    assert within(len(angles), n, 0.2) and within(len(scales), n, 0.2) and within(both, n, 0.04)
    angles = np.array(angles)
    assert np.abs(angles).max() <= 30 and (np.abs(angles).max(0) > 29).all()
    assert (angles != 0).all()  # always all three
    assert abs(angles.mean()) < 4 * 30 / 3**0.5 / angles.size**0.5
    assert_half_below_one(np.array(scales), 0.7, 1.4)


def assert_half_below_one(factors: np.ndarray, low: float, high: float) -> None:
    """Uniform in (low, 1) half of the time and in (1, high) otherwise."""
    below, above = factors[factors < 1], factors[factors >= 1]
    assert within(len(below), len(factors), 0.5)
    for part, a, b in ((below, low, 1), (above, 1, high)):
        assert a <= part.min() < a + 0.02 * (b - a) and b - 0.02 * (b - a) < part.max() <= b
        assert abs(part.mean() - (a + b) / 2) < 4 * (b - a) / 12**0.5 / len(part) ** 0.5


def test_factors_lie_on_both_sides_of_one():
    random = np.random.RandomState(0)
    assert_half_below_one(np.array([draw_about_one(random, 0.75, 1.25) for _ in range(4000)]), 0.75, 1.25)
    assert all(1.1 <= draw_about_one(random, 1.1, 1.3) <= 1.3 for _ in range(50))


def test_without_a_hit_the_centre_is_cut_out_unchanged():
    image = volume((25, 24, 23)).astype(np.float32)
    out = RandRotateScaled("image", 16, rotate_prob=0, scale_prob=0)({"image": image})["image"]
    np.testing.assert_array_equal(out, image[:, 4:20, 4:20, 3:19])
    with pytest.raises(ValueError, match="larger than the volume"):
        RandRotateScaled("image", 32, rotate_prob=0, scale_prob=0)({"image": image})


def test_image_and_label_turn_together():
    label = label_map((40, 40, 40))
    label[label < 0] = 0
    image = ndimage.gaussian_filter((label == 2).astype(np.float32), 0.5)[None]
    transform = RandRotateScaled(("image", "label"), 24, mode=("image", "label"), rotate_prob=1, scale_prob=1)
    transform.set_random_state(2)
    out = transform({"image": image, "label": label[None]})
    inside = out["label"] >= 0
    agree = ((out["image"] > 0.5) == (out["label"] == 2))[inside]
    assert agree.float().mean() > 0.97
    assert out["label"].dtype == torch.int16


def test_dummy_2d_turns_and_scales_in_the_plane_only():
    image = np.broadcast_to(np.arange(8.0, dtype=np.float32), (1, 20, 20, 8)).copy()
    transform = RandRotateScaled("image", (8, 8, 8), rotate_prob=1, scale_prob=1, dummy_2d=True, thin_axis=2)
    transform.set_random_state(0)
    largest = 0.0
    for _ in range(30):
        out = transform({"image": image})["image"]
        np.testing.assert_allclose(out[0, 3, 3], np.arange(8), atol=1e-5)
        assert transform.angles[0] == transform.angles[1] == 0
        largest = max(largest, abs(transform.angles[2]))
    assert np.pi / 2 < largest <= np.pi


def test_meta_tensor_says_where_the_turned_grid_lies():
    image = MetaTensor(
        torch.from_numpy(volume((30, 30, 30), 1)).float(), affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))
    )
    transform = RandRotateScaled("image", 12, rotate_prob=1, scale_prob=1).set_random_state(1)
    out = transform({"image": image})["image"]
    index = np.array([3, 7, 5, 1])
    position = (out.affine.numpy() @ index)[:3] / 2  # mm to voxels of the input
    value = ndimage.map_coordinates(image[0].numpy().astype(float), position[:, None], order=3)
    np.testing.assert_allclose(out[0, 3, 7, 5], value[0], atol=1e-4)


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


ALONE = {
    "spatial": RandRotateScaled("image", rotate_prob=1, scale_prob=1),
    "smooth": RandChannelSmoothd("image", prob=1, channel_prob=1),
    "low resolution": RandChannelLowResolutiond("image", prob=1, channel_prob=1),
    "gamma": RandChannelGammad("image", prob=1),
    "inverted gamma": RandChannelGammad("image", prob=1, invert=True),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("kind", ["array", "tensor", "meta"])
def test_each_works_alone_reproducibly_and_leaves_its_input(name, kind):
    values = volume((12, 14, 16)).astype(np.float32)
    image = {"array": np.array, "tensor": torch.tensor, "meta": lambda v: MetaTensor(torch.tensor(v))}[kind](values)
    if kind == "meta":
        image.meta["filename_or_obj"] = "a.nii.gz"
    outs = []
    for _ in range(2):
        ALONE[name].set_random_state(7)
        outs.append(ALONE[name]({"image": image, "other": 1}))
    np.testing.assert_array_equal(np.asarray(image), values)
    assert torch.equal(outs[0]["image"], outs[1]["image"]) and outs[0]["other"] == 1
    assert outs[0]["image"].dtype == torch.float32 and outs[0]["image"].shape == values.shape
    assert not np.allclose(outs[0]["image"], values)
    if kind == "meta":
        assert outs[0]["image"].meta["filename_or_obj"] == "a.nii.gz"


@pytest.mark.parametrize("name", ALONE)
def test_each_works_in_a_lazy_pipeline(name):
    """Pending operations of MONAI's lazy transforms are carried out first: the result is that of the eager pipeline."""
    image = volume((12, 14, 16)).astype(np.float32)
    outs = []
    for lazy in (False, True):
        pipeline = Compose([RandFlipd("image", prob=1, spatial_axis=0), ALONE[name]], lazy=lazy)
        pipeline.set_random_state(3)
        outs.append(pipeline({"image": image})["image"])
    torch.testing.assert_close(outs[0].as_tensor(), outs[1].as_tensor(), atol=1e-4, rtol=0)


def test_channels_that_are_not_hit_stay_to_the_bit():
    image = volume((10, 10, 10), 3).astype(np.float32)
    transform = RandChannelSmoothd("image", prob=1, channel_prob=0.5).set_random_state(1)
    out = transform({"image": image})["image"]
    hit = [parameter is not None for parameter in transform.parameters]
    assert 0 < sum(hit) < 3
    for channel, changed in enumerate(hit):
        assert np.array_equal(out[channel], image[channel]) != changed


def test_cleaning_zeroes_masked_channels_outside_and_makes_outside_background():
    image = np.ones((3, 4, 4, 4), np.float32)
    label = np.zeros((1, 4, 4, 4), np.int16)
    label[0, 0], label[0, 3] = -1, 2
    out = CleanOutsided(mask_channels=(0, 2))({"image": image, "label": label})
    assert (out["image"][[0, 2], 0] == 0).all() and (out["image"][1] == 1).all() and (out["image"][:, 1:] == 1).all()
    assert out["label"].dtype == torch.uint8 and sorted(out["label"].unique().tolist()) == [0, 2]
    assert (out["label"][0, 0] == 0).all()
    assert (image == 1).all() and label.min() == -1
    with pytest.raises(ValueError, match="mask_channels"):
        CleanOutsided(mask_channels=(3,))({"image": image, "label": label})


def test_labels_above_255_need_another_type():
    data = {"image": np.ones((1, 2, 2, 2), np.float32), "label": np.full((1, 2, 2, 2), 300, np.int16)}
    with pytest.raises(ValueError, match="300"):
        CleanOutsided()(data)
    assert (CleanOutsided(label_dtype=torch.float32)(data)["label"] == 300).all()


def test_cleaned_label_goes_through_the_deep_supervision_loss():
    label = torch.from_numpy(label_map((16, 16, 16)).clip(0)).view(1, 1, 16, 16, 16)
    outputs = [torch.from_numpy(volume((n, n, n), 4)).float()[None] for n in (16, 8, 4)]
    loss = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True))
    torch.testing.assert_close(loss(outputs, label.to(torch.uint8)), loss(outputs, label.float()))


def test_pipeline_has_the_published_order_and_probabilities():
    transforms = training_augmentation(16, mask_channels=(0,)).transforms
    assert [type(t).__name__ for t in transforms] == [
        "RandPatchd",
        "RandGaussianNoised",
        "RandChannelSmoothd",
        "RandScaleIntensityd",
        "RandScaleIntensityFixedMeand",
        "RandChannelLowResolutiond",
        "RandChannelGammad",
        "RandChannelGammad",
        "RandFlipd",
        "RandFlipd",
        "RandFlipd",
        "CleanOutsided",
    ]
    assert [t.prob for t in transforms[1:8]] == [0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3]
    assert [t.invert for t in transforms[6:8]] == [True, False]
    assert isinstance(transforms[0], RandPatchd)


def changed_share(transform, n=500, channels=1, shape=(4, 4, 4)):
    """How many of n samples MONAI's transform changes, and the ratio of their deviations from the mean, per channel."""
    image = volume(shape, channels).astype(np.float32) + 3
    transform.set_random_state(0)
    outs = [transform({"image": image})["image"].numpy() for _ in range(n)]
    return image, [out for out in outs if not np.array_equal(out, image)]


def test_monai_s_brightness_is_a_factor_per_channel():
    transform = training_augmentation(16).transforms[3]
    image, outs = changed_share(transform, channels=2)
    assert within(len(outs), 500, 0.15)
    factors = np.array([(out / image).reshape(2, -1) for out in outs])
    np.testing.assert_allclose(factors, factors[..., :1].repeat(64, -1), rtol=1e-5)
    assert 0.75 <= factors.min() < 0.77 and 1.23 < factors.max() <= 1.25
    assert (np.abs(factors[:, 0, 0] - factors[:, 1, 0]) > 1e-4).mean() > 0.95


def test_monai_s_contrast_keeps_mean_and_range_per_channel():
    transform = training_augmentation(16).transforms[4]
    image, outs = changed_share(transform, channels=2)
    assert within(len(outs), 500, 0.15)
    low, high, mean = (f(image, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max, np.mean))
    for out in outs:
        middle = np.abs(image - mean) == np.abs(image - mean).min(axis=(1, 2, 3), keepdims=True)
        factor = ((out - mean) / (image - mean))[~middle & (out > low) & (out < high)]
        assert 0.74 < factor.min() and factor.max() < 1.26
        assert (out >= low - 1e-6).all() and (out <= high + 1e-6).all()
    factor = np.median([(o - mean)[0] / (image - mean)[0] for o in outs], axis=(1, 2, 3))
    assert factor.min() < 0.8 and factor.max() > 1.2


def test_monai_s_noise_has_a_drawn_standard_deviation_up_to_a_tenth():
    transform = training_augmentation(16).transforms[1]
    image, outs = changed_share(transform, channels=2, shape=(8, 8, 8))
    assert within(len(outs), 500, 0.1)
    spreads = np.array([(out - image).std() for out in outs])
    assert spreads.max() < 0.11 and spreads.min() < 0.02 and 0.03 < spreads.mean() < 0.07
    one = [(out - image).reshape(2, -1).std(1) for out in outs]
    assert max(abs(a / b - 1) for a, b in one) < 0.25  # one standard deviation for all channels


def test_whole_pipeline_keeps_image_and_label_together():
    """An image that is its label: after everything spatial and mirroring it still is, voxel by voxel."""
    label = label_map((48, 40, 44)).clip(0)
    image = (label == 3).astype(np.float32)[None]
    case = {"image": image, "label": label[None].astype(np.int8), "foreground": {3: np.argwhere(label == 3)}}
    transform = training_augmentation(24, mask_channels=())
    for seed in range(12):
        transform.set_random_state(seed)
        out = transform({**case, "force_foreground": True})
        inside, value = out["label"] == 3, out["image"]
        assert out["image"].shape == out["label"].shape == (1, 24, 24, 24)
        assert value[inside].mean() > value[~inside].mean() + 0.3
    with pytest.raises(ValueError, match="mode"):
        RandPatchd(("image", "label"), 8, mode="nearest")
