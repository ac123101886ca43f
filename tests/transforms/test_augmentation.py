"""The whole augmentation: order, probabilities, and that image and label stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.augmentation import label_map, volume, within
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.transforms import Compose, RandFlipd

from mednext_monai.transforms import (
    CleanOutsided,
    RandChannelGammad,
    RandChannelLowResolutiond,
    RandChannelSmoothd,
    RandMirrord,
    RandNoised,
    RandPatchd,
    RandRotateScaled,
    training_augmentation,
)

ALONE = {
    "spatial": RandRotateScaled("image", rotate_prob=1, scale_prob=1),
    "mirror": RandMirrord("image", prob=1),
    "noise": RandNoised("image", prob=1),
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
        "RandNoised",
        "RandChannelSmoothd",
        "RandScaleIntensityd",
        "RandScaleIntensityFixedMeand",
        "RandChannelLowResolutiond",
        "RandChannelGammad",
        "RandChannelGammad",
        "RandMirrord",
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


def test_the_noise_has_a_drawn_standard_deviation_up_to_a_tenth():
    transform = training_augmentation(16).transforms[1]
    image, outs = changed_share(transform, channels=2, shape=(8, 8, 8))
    assert within(len(outs), 500, 0.1)
    spreads = np.array([(out - image).std() for out in outs])
    assert spreads.max() < 0.11 and spreads.min() < 0.02 and 0.03 < spreads.mean() < 0.07
    one = [(out - image).reshape(2, -1).std(1) for out in outs]
    assert max(abs(a / b - 1) for a, b in one) < 0.25  # one standard deviation for all channels
    assert all(abs((out - image).mean()) < 4 * spread / 1024**0.5 for out, spread in zip(outs, spreads))
    assert len({float(out.ravel()[0]) for out in outs}) == len(outs)  # each another seed


def test_mirroring_is_that_of_monai_s_flips_with_their_affine():
    image, label = MetaTensor(volume((5, 6, 7), 2), affine=np.diag([2.0, 3.0, 4.0, 1.0])), label_map((5, 6, 7))[None]
    transform = RandMirrord(("image", "label"))
    transform.set_random_state(1)
    seen = set()
    for _ in range(60):
        out = transform({"image": image, "label": label})
        seen.add(transform.mirrored)
        flips = Compose([RandFlipd(("image", "label"), prob=1, spatial_axis=axis) for axis in transform.mirrored])
        expected = flips({"image": image, "label": label})
        for key in ("image", "label"):
            assert torch.equal(torch.as_tensor(out[key]), torch.as_tensor(expected[key]))
        torch.testing.assert_close(out["image"].affine, expected["image"].affine)
    assert len(seen) == 8


@pytest.mark.parametrize(
    "make",
    [lambda: RandMirrord("image", prob=2), lambda: RandNoised("image", prob=-1), lambda: RandNoised("i", std=-1)],
)
def test_probabilities_and_deviations_are_checked(make):
    with pytest.raises(ValueError, match="must be"):
        make()


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


def test_slices_are_augmented_in_their_plane_as_the_original_does():
    transform = training_augmentation((512, 512), slice_axis=2).transforms
    augmentation = transform[0].augmentation
    assert augmentation.box_size((512, 512, 1)) == (602, 602, 1)  # 512 / 0.85
    assert [tuple(one.axes) for one in transform if isinstance(one, RandMirrord)] == [(0, 1)]
    augmentation.set_random_state(0)
    angles = []
    for _ in range(2000):
        augmentation.randomize()
        if augmentation.angles is not None:
            assert augmentation.angles[:2] == (0, 0)
            angles.append(augmentation.angles[2])
    assert 0.16 < len(angles) / 2000 < 0.24 and -np.pi < min(angles) < -3 and 3 < max(angles) < np.pi
    low = next(one for one in transform if isinstance(one, RandChannelLowResolutiond))
    assert low.keep_axis is None


@pytest.mark.parametrize("axis, patch", [(0, (96, 64)), (1, (64, 112)), (2, (64, 112)), (2, (112, 64))])
def test_long_patches_of_slices_are_rotated_by_up_to_15_degrees(axis, patch):
    augmentation = training_augmentation(patch, slice_axis=axis).transforms[0].augmentation
    is_long = max(patch) > 1.5 * min(patch)
    assert augmentation.in_plane_range == pytest.approx(np.radians(15) if is_long else np.pi)
    box = list(augmentation.box_size((*patch[:axis], 1, *patch[axis:])))
    assert box.pop(axis) == 1
    angle = np.radians(15 if is_long else 90)
    turned = (
        abs(patch[0] * np.cos(angle) - patch[1] * np.sin(angle)),
        patch[0] * np.sin(angle) + patch[1] * np.cos(angle),
    )
    assert box == [int(max(size, extent) / 0.85 + 1e-9) for size, extent in zip(patch, turned)]
