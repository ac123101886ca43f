"""Which patch of a case is drawn: classes, voxels, borders, and what of a stored case is read for it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.patches import binomial_band, numbered_case
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, RandGaussianNoised

from mednext_monai.preprocessing.foreground import foreground_locations
from mednext_monai.transforms import (
    RandPatchd,
    RandRotateScaled,
    patch_transforms,
    training_augmentation,
)
from mednext_monai.transforms.patch import read_box

KEYS = ("image", "label")


def start_of(patch: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(v) for v in patch.affine[:3, 3])


def test_box_is_the_original_s_205_voxels_for_a_patch_of_128():
    assert RandRotateScaled("image").box_size((128, 128, 128)) == (205, 205, 205)
    flat = RandRotateScaled("image", dummy_2d=True, thin_axis=2)
    assert flat.box_size((128, 128, 32)) == (150, 150, 32)


@pytest.mark.parametrize("augmented, first", [(True, -1), (False, 0)])
def test_random_patch_begins_uniformly_where_the_original_s_does(augmented, first):
    # a size with an odd margin, as 205 - 128 is
    augmentation = RandRotateScaled(KEYS, rotate_prob=0, scale_prob=0) if augmented else None
    crop = RandPatchd(KEYS, 8, augmentation=augmentation, foreground_prob=0)
    margin = crop.box_size[0] - 8
    assert margin == (4 if augmented else 0)
    first = -(margin // 2) + margin // 2 - (1 if margin % 2 else 0)
    crop.set_random_state(0)
    starts = Counter()
    n = 2000
    for _ in range(n):
        crop.randomize((20, 18, 16), None)
        starts[crop.start[0]] += 1
    places = range(first, 20 - 8 + 1)
    assert set(starts) == set(places)
    low, high = binomial_band(n, 1 / len(places))
    assert all(low < count < high for count in starts.values())


def test_published_patch_begins_between_one_voxel_outside_and_the_last_that_fits():
    crop = RandPatchd(KEYS, 128, augmentation=RandRotateScaled(KEYS), foreground_prob=0)
    crop.set_random_state(0)
    starts = []
    for _ in range(600):
        crop.randomize((132, 150, 100), None)
        starts.append(crop.start)
    low, high = np.min(starts, axis=0), np.max(starts, axis=0)
    assert (low[0], high[0]) == (-1, 4)  # 132 - 128
    assert (low[1], high[1]) == (-1, 22)
    # smaller than the patch: the original centers, to a voxel
    assert (low[2], high[2]) == (-15, -14)


def test_forced_patch_has_its_voxel_at_the_center_and_overhangs_only_at_the_high_end():
    crop = RandPatchd(KEYS, 128, augmentation=RandRotateScaled(KEYS))
    for voxel, start in [((100, 100, 100), (36, 36, 36)), ((149, 0, 64), (85, -1, 0)), ((10, 63, 62), (-1, -1, -1))]:
        crop.randomize((150, 150, 150), {1: np.array([voxel])})
        assert crop.start == start


def test_overhang_is_zero_in_the_image_and_outside_in_the_label():
    case = numbered_case()
    case["foreground"] = {1: np.array([[19, 17, 15]])}
    crop = RandPatchd(KEYS, 8, foreground_prob=1)
    out = crop(case)
    assert start_of(out["image"]) == (15, 13, 11)
    np.testing.assert_array_equal(out["image"][:, :5, :5, :5], case["image"][:, 15:, 13:, 11:])
    np.testing.assert_array_equal(out["label"][0, :5, :5, :5], case["label"][15:, 13:, 11:])
    for beyond in (np.s_[:, 5:], np.s_[:, :, 5:], np.s_[:, :, :, 5:]):
        assert (out["image"][beyond] == 0).all() and (out["label"][beyond] == -1).all()
    assert out["image"].shape == (2, 8, 8, 8) and out["label"].shape == (1, 8, 8, 8)


def test_case_smaller_than_the_patch_is_padded_on_both_sides():
    case = numbered_case((6, 18, 16))
    case["foreground"] = {}
    out = RandPatchd(KEYS, (8, 8, 8), foreground_prob=1)(case)
    assert start_of(out["image"])[0] == -1
    assert (out["image"][:, [0, 7]] == 0).all() and (out["image"][0, 1:7] > 0).all()


def test_classes_are_drawn_uniformly_however_small():
    case = numbered_case()  # 216 voxels of class 1, one of class 2
    crop = RandPatchd(KEYS, 2, foreground_prob=1)
    crop.set_random_state(3)
    n = 600
    hits = sum(int(crop(case)["label"][0, 1, 1, 1] == 2) for _ in range(n))
    low, high = binomial_band(n, 0.5)
    assert low < hits < high


def test_voxels_of_a_class_are_drawn_uniformly():
    crop = RandPatchd(KEYS, 2)
    crop.set_random_state(1)
    voxels = np.array([[5, 5, 5], [6, 5, 5], [7, 5, 5], [8, 5, 5]])
    n, starts = 1200, Counter()
    for _ in range(n):
        crop.randomize((20, 20, 20), {1: voxels})
        starts[crop.start[0]] += 1
    low, high = binomial_band(n, 0.25)
    assert set(starts) == {4, 5, 6, 7} and all(low < count < high for count in starts.values())


def test_case_without_foreground_gives_a_random_patch():
    case = numbered_case()
    case["label"][:] = 0
    del case["foreground"]  # then the label is searched
    case["force_foreground"] = True
    out = RandPatchd(KEYS, 8)(case)
    assert out["image"].shape == (2, 8, 8, 8) and (out["label"] == 0).all()
    assert set(out) == set(KEYS)


@pytest.mark.parametrize("seed", range(4))
def test_patch_from_the_needed_part_equals_patch_from_the_whole_box(stored, seed):
    """Reading less changes nothing: the original's box, loaded whole and then augmented, gives the same."""
    augmentation = RandRotateScaled(KEYS, rotate_prob=float(seed != 1), scale_prob=float(seed != 2))
    crop = RandPatchd(KEYS, 16, augmentation=augmentation, foreground_prob=1)
    crop.set_random_state(seed)
    out = crop(stored)
    box = [a - (b - 16) // 2 for a, b in zip(crop.start, crop.box_size)]
    alone = RandRotateScaled(KEYS, 16, mode=("image", "label"))
    alone.angles, alone.scale = augmentation.angles, augmentation.scale
    alone.randomize = lambda: None
    whole = {
        key: read_box(np.load(stored[key]), box, crop.box_size, fill, mode)
        for key, fill, mode in (("image", 0, "image"), ("label", -1, "label"))
    }
    expected = alone(whole)
    scale = np.abs(np.load(stored["image"])).max()
    torch.testing.assert_close(out["image"].as_tensor(), expected["image"].as_tensor(), rtol=0, atol=2e-6 * scale)
    assert torch.equal(out["label"].as_tensor(), expected["label"].as_tensor())


def test_only_the_patch_is_read_when_no_spatial_augmentation_fires(stored, monkeypatch):
    sizes = []

    def spy(array, start, size, *rest, **options):
        sizes.append(tuple(size))
        return read_box(array, start, size, *rest, **options)

    monkeypatch.setattr("mednext_monai.transforms.patch.read_box", spy)
    RandPatchd(KEYS, 16, augmentation=RandRotateScaled(KEYS, rotate_prob=0, scale_prob=0))(stored)
    assert sizes == [(16, 16, 16)] * 2


def test_stored_case_in_memory_and_on_disk_give_the_same_patch(stored):
    loaded = {key: np.load(stored[key]) for key in KEYS}
    with np.load(stored["foreground"]) as arrays:
        loaded["foreground"] = {int(k): arrays[k] for k in arrays.files}
    tensors = {**loaded, "image": torch.from_numpy(loaded["image"])}
    outs = []
    for case in (stored, loaded, tensors):
        crop = training_augmentation(16)
        crop.set_random_state(5)
        outs.append(crop(case))
    for out in outs[1:]:
        assert all(torch.equal(out[key], outs[0][key]) for key in KEYS)


def test_input_is_not_written_to(stored):
    case = {key: np.load(stored[key]) for key in KEYS}
    case["image"] = torch.from_numpy(case["image"])
    before = {key: np.array(case[key]) for key in KEYS}
    out = RandPatchd(KEYS, (40, 36, 30), foreground_prob=0)(case)
    for key in KEYS:
        out[key].fill_(7)
        np.testing.assert_array_equal(case[key], before[key])


def test_meta_tensor_keeps_its_place_in_space():
    case = numbered_case()
    affine = torch.diag(torch.tensor([2.0, 3.0, -1.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([10.0, -5.0, 7.0])
    case["image"] = MetaTensor(torch.from_numpy(case["image"]), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    case["foreground"] = {1: np.array([[10, 9, 8]])}
    out = RandPatchd(KEYS, 8, foreground_prob=1)(case)["image"]
    torch.testing.assert_close(
        out.affine @ torch.tensor([0.0, 0, 0, 1]).double(), affine @ torch.tensor([6.0, 5, 4, 1]).double()
    )
    assert out.meta["filename_or_obj"] == "a.nii.gz"
    set_track_meta(False)
    try:
        assert type(RandPatchd(KEYS, 8)(numbered_case())["image"]) is torch.Tensor
    finally:
        set_track_meta(True)


def test_volumes_of_different_sizes_are_refused():
    case = {"image": np.zeros((1, 8, 8, 8), np.float32), "label": np.zeros((8, 8, 9), np.int8)}
    with pytest.raises(ValueError, match="one size"):
        RandPatchd(KEYS, 4)(case)


def test_set_random_state_reproduces_a_pipeline_of_ours_and_monai_s(stored):
    pipeline = Compose([RandPatchd(KEYS, 16, augmentation=RandRotateScaled(KEYS)), RandGaussianNoised("image", prob=1)])
    outs = []
    for _ in range(2):
        pipeline.set_random_state(11)
        outs.append([pipeline(stored)["image"] for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(*outs))
    assert not torch.equal(outs[0][0], outs[0][1])


def test_validation_patches_come_from_inside_and_are_clean(stored):
    transform = patch_transforms(16)
    transform.set_random_state(0)
    for forced in (False, True):
        out = transform({**stored, "force_foreground": forced})
        assert out["image"].shape == (2, 16, 16, 16) and out["label"].dtype == torch.uint8
        assert out["label"].min() >= 0
        assert min(start_of(out["image"])) >= 0


IGNORE = 3


def sparse_case() -> dict:
    """A numbered case of which one slab is annotated; the ignored part has no class, though most of the case."""
    case = numbered_case((30, 26, 24))
    del case["foreground"]  # computed from the label
    case["label"][:, :, :6] = case["label"][:, :, 12:] = IGNORE
    return case


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("augmentation", [None, RandRotateScaled(KEYS, rotate_prob=0, scale_prob=0)])
def test_no_patch_is_centered_on_an_ignored_voxel(tmp_path, augmentation, from_file):
    case = sparse_case()
    if from_file:
        locations = {str(k): v for k, v in foreground_locations(case["label"], IGNORE).items()}
        np.savez(tmp_path / "foreground.npz", **locations)
        case["foreground"] = str(tmp_path / "foreground.npz")
    crop = RandPatchd(KEYS, 8, augmentation=augmentation, ignore_label=IGNORE)
    crop.set_random_state(0)
    starts = {True: [], False: []}
    for forced in (True, False):
        for _ in range(300):
            patch = crop({**case, "force_foreground": forced})
            starts[forced].append(start_of(patch["image"]))
            assert "foreground" not in patch and patch["label"].shape == (1, 8, 8, 8)
            assert not forced or bool((patch["label"] == 1).any())
    depths = {forced: {start[2] + 4 for start in found} for forced, found in starts.items()}  # of the central voxel
    assert depths == {True: {6, 7}, False: {6, 7, 8, 9, 10, 11}}  # class 1 ends there, the annotation here


def test_a_random_patch_has_annotated_voxels_of_all_classes_at_its_center_in_their_share():
    case = sparse_case()
    case["foreground"] = foreground_locations(case["label"], IGNORE)
    crop = RandPatchd(KEYS, 2, ignore_label=IGNORE, foreground_prob=0)
    crop.set_random_state(1)
    n = 1500
    drawn = Counter(int(crop(case)["label"][0, 1, 1, 1]) for _ in range(n))
    voxels = Counter(case["label"][case["label"] != IGNORE].tolist())
    low, high = binomial_band(n, voxels[1] / voxels.total())
    assert set(drawn) == {0, 1} and low < drawn[1] < high


def test_a_forced_patch_without_foreground_is_annotated_and_without_annotation_random():
    case = sparse_case()
    case["label"][case["label"] != IGNORE] = 0
    crop = RandPatchd(KEYS, 2, ignore_label=IGNORE, foreground_prob=1)
    crop.set_random_state(0)
    assert {int(crop(case)["label"][0, 1, 1, 1]) for _ in range(100)} == {0}
    case["label"][:] = IGNORE
    starts = {tuple(start_of(crop(case)["image"])) for _ in range(100)}
    assert len(starts) > 90
    with pytest.raises(ValueError, match="must include those of 'annotated' voxels, got \\['1'\\]"):
        crop({**case, "foreground": {1: np.array([[0, 0, 0]])}})


def test_the_ignore_label_survives_augmentation_as_a_label_like_any_other():
    case = sparse_case()
    transform = training_augmentation(16, ignore_label=IGNORE)
    transform.set_random_state(0)
    values, turned = Counter(), 0
    for _ in range(40):
        patch = transform({**case, "force_foreground": False})
        assert patch["label"].dtype == torch.uint8
        values += Counter(patch["label"].flatten().tolist())
        turned += transform.transforms[0].augmentation.angles is not None
    assert set(values) <= {0, 1, 2, IGNORE} and turned > 3
    assert values[IGNORE] > values[0] > values[1] > 0
    expected = patch_transforms(16, ignore_label=IGNORE)
    assert expected.transforms[0].ignore_label == IGNORE


@pytest.mark.parametrize("name", ["image", "label", "foreground"])
def test_a_damaged_file_is_named_with_what_to_do(stored, name):
    with open(stored[name], "rb+") as file:
        file.write(bytes(64))
    with pytest.raises(ValueError, match=f"{stored[name]} of a stored case cannot be read: .* Delete the folder"):
        RandPatchd(KEYS, 16)({**stored, "force_foreground": True})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_patch_of_a_slice_is_that_part_of_it_with_its_place_in_the_affine(axis):
    case = numbered_case()
    crop = RandPatchd(KEYS, (12, 10), foreground_prob=0, slice_axis=axis)
    crop.set_random_state(3)
    for _ in range(10):
        patch = crop(dict(case))
        assert patch["image"].shape == (2, 12, 10) and patch["label"].shape == (1, 12, 10)
        corner = (patch["image"].affine @ torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))[:3].int().tolist()
        sides = [slice(first, first + size) for first, size in zip(corner, crop.patch_size)]
        assert crop.patch_size[axis] == 1
        np.testing.assert_array_equal(patch["image"], case["image"][(slice(None), *sides)].squeeze(1 + axis))
        np.testing.assert_array_equal(patch["label"][0], case["label"][tuple(sides)].squeeze(axis))
        step = patch["image"].affine @ torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
        assert step[:3].nonzero().item() == (1 if axis == 0 else 0)


def test_a_random_patch_of_a_slice_is_of_any_slice_and_anywhere_in_it():
    crop = RandPatchd(KEYS, (8, 8), foreground_prob=0, slice_axis=2)
    crop.set_random_state(0)
    starts, n = [Counter(), Counter(), Counter()], 3000
    for _ in range(n):
        crop.randomize((20, 18, 16), None)
        for counts, first in zip(starts, crop.start):
            counts[first] += 1
    for counts, places in zip(starts, (13, 11, 16)):
        low, high = binomial_band(n, 1 / places)
        assert sorted(counts) == list(range(places)) and all(low < count < high for count in counts.values())


def test_a_forced_patch_of_a_slice_is_uniform_over_classes_then_slices_then_voxels():
    label = np.zeros((12, 12, 9), np.int8)
    label[2:8, 2:8, 1] = 1  # 36 voxels in a slice, and one in each of two others
    label[4, 4, 5] = label[4, 5, 7] = 1
    label[6, 6, 3] = 2
    crop = RandPatchd(KEYS, (4, 4), foreground_prob=1, slice_axis=2)
    crop.set_random_state(0)
    locations, n = foreground_locations(label), 20000
    voxels = Counter()
    for _ in range(n):
        crop.randomize(label.shape, locations)
        x, y, z = crop.start
        voxels[x + 2, y + 2, z] += 1
    expected = {(6, 6, 3): 1 / 2, (4, 4, 5): 1 / 6, (4, 5, 7): 1 / 6}
    expected |= {(x, y, 1): 1 / 6 / 36 for x in range(2, 8) for y in range(2, 8)}
    assert voxels.keys() == expected.keys()
    for voxel, probability in expected.items():
        low, high = binomial_band(n, probability)
        assert low < voxels[voxel] < high, voxel


def test_patches_of_slices_are_drawn_from_stored_cases_as_from_arrays(stored):
    case = numbered_case((40, 36, 30))
    for make in (training_augmentation, patch_transforms):
        patches = []
        for source in (stored, case):
            transform = make((16, 32), slice_axis=1)
            transform.set_random_state(5)
            patches.append([transform({**source, "force_foreground": number % 2 == 0}) for number in range(12)])
        for one, other in zip(*patches):
            assert one["image"].shape == (2, 16, 32) and one["label"].dtype == torch.uint8
            assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])
            assert torch.equal(one["image"].affine, other["image"].affine)
