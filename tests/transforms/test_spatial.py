"""Rotation and scaling: how often, in what range, and where the turned grid is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.augmentation import MAPS, affine, assert_half_below_one, label_map, volume, within
from monai.data import MetaTensor
from scipy import ndimage

from mednext_monai.transforms import (
    RandRotateScaled,
)
from mednext_monai.transforms.spatial import SpatialDraw, draw_about_one, interpolate_box, rotation_matrix


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_part_of_the_box_gives_the_same_as_the_box(interpolation):
    for name in MAPS:
        shape, size = (90, 85, 80), (20, 20, 20)
        image = torch.from_numpy(volume(shape)).float()
        matrix, offset = affine(name, shape, size)
        draw = SpatialDraw(matrix, offset, shape, interpolation)
        start, extent = draw.needed(size, "image")
        assert np.prod(extent) < 0.5 * np.prod(shape)
        part = image[(slice(None), *(slice(b, b + e) for b, e in zip(start, extent)))].contiguous()
        out = interpolate_box(part, draw, start, size, "image")
        tolerance = 1e-5 if interpolation == "cubic" else 1e-4  # coordinates in float32
        whole = interpolate_box(image, draw, np.zeros(3), size, "image")
        torch.testing.assert_close(out, whole, atol=tolerance, rtol=0)


def test_images_are_interpolated_as_asked_and_labels_always_the_same():
    image, label = torch.from_numpy(volume((40, 40, 40), 1)).float(), torch.from_numpy(label_map((40, 40, 40)))[None]
    outputs = {}
    for interpolation in ("cubic", "linear"):
        transform = RandRotateScaled(
            ("image", "label"), 20, ("image", "label"), rotate_prob=1, scale_prob=1, interpolation=interpolation
        ).set_random_state(3)
        outputs[interpolation] = transform({"image": image, "label": label})
    difference = (outputs["cubic"]["image"] - outputs["linear"]["image"]).abs().mean()
    assert 0.01 < difference / image.std() < 0.5  # of white noise
    torch.testing.assert_close(outputs["cubic"]["label"], outputs["linear"]["label"])
    with pytest.raises(ValueError, match="interpolation must be one of .*'cubic', 'linear'.*, got 'nearest'"):
        RandRotateScaled("image", interpolation="nearest")


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


def test_factors_lie_on_both_sides_of_one():
    random = np.random.RandomState(0)
    assert_half_below_one(np.array([draw_about_one(random, 0.75, 1.25) for _ in range(4000)]), 0.75, 1.25)
    assert all(1.1 <= draw_about_one(random, 1.1, 1.3) <= 1.3 for _ in range(50))


def test_without_a_hit_the_center_is_cut_out_unchanged():
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


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle, scale", [(0.7, None), (None, 1.3), (2.4, 0.8)])
def test_slices_are_interpolated_as_scipy_does_in_2d(axis, angle, scale):
    size, box = (14, 18), (25, 30)
    augmentation = RandRotateScaled(("image",), dummy_2d=True, thin_axis=axis)
    augmentation.angles = None if angle is None else tuple(angle if a == axis else 0.0 for a in range(3))
    augmentation.scale = scale
    image, label = volume(box, 2, 1), label_map(box)
    draw = augmentation.draw((*size[:axis], 1, *size[axis:]), (*box[:axis], 1, *box[axis:]))
    in_plane = [a for a in range(3) if a != axis]
    matrix, offset = draw.matrix[np.ix_(in_plane, in_plane)], draw.offset[in_plane]
    outputs = {}
    for mode, values in (("image", image.astype(np.float32)), ("label", label[None])):
        start, extent = draw.needed((*size[:axis], 1, *size[axis:]), mode)
        full = torch.from_numpy(values).unsqueeze(1 + axis)
        part = full[(slice(None), *(slice(s, s + e) for s, e in zip(start, extent)))]
        out = interpolate_box(part, draw, start, (*size[:axis], 1, *size[axis:]), mode)
        outputs[mode] = out.squeeze(1 + axis).numpy()
    for channel, out in zip(image.astype(np.float32), outputs["image"]):
        expected = ndimage.affine_transform(channel.astype(float), matrix, offset, size, order=3)
        np.testing.assert_allclose(out, expected, atol=2e-4)
    expected = np.full(size, 0, label.dtype)
    for value in np.unique(label):
        weight = ndimage.affine_transform((label == value).astype(float), matrix, offset, size, order=1)
        expected[weight >= 0.5 - 1e-9] = value
    corners = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) @ matrix.T + offset
    outside = ((corners < 0) | (corners > np.array(box) - 1)).any(-1)
    expected[outside] = -1
    assert (outputs["label"][0] != expected).mean() < 0.01  # ties
