"""The promises: crop, resampling and normalisation as published, on arrays and as MONAI transforms, and the exact way
back to the grid, affine and header of the file."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, Invertd, LoadImaged, Orientationd
from scipy import ndimage

from mednext_monai.preprocessing.case import check_plan, preprocess_case
from mednext_monai.preprocessing.files import read_grid, read_image, read_label, write_segmentation
from mednext_monai.preprocessing.foreground import foreground_locations
from mednext_monai.preprocessing.geometry import Geometry, restore_labels, restore_probabilities, spacing_of
from mednext_monai.preprocessing.nonzero import bounding_box, fill_holes, mark_outside, nonzero_mask
from mednext_monai.preprocessing.normalization import normalize_channels
from mednext_monai.preprocessing.transforms import (
    NonzeroCropd,
    NormalizeChannels,
    NormalizeChannelsd,
    ResampleToSpacing,
    ResampleToSpacingd,
    RestoreOriginalGridd,
    SaveSegmentationd,
)

CT = {"mean": 50.0, "sd": 20.0, "p005": -30.0, "p995": 160.0}
PLAN = {"spacing": [1, 1, 1], "normalization": ["CT", "masked_zscore"], "intensity": {"0": CT}}


def rotated_affine(spacing=(2.0, 0.7, 1.2), origin=(-90.5, 33.0, 210.25)) -> np.ndarray:
    """Rotated by 0.4 rad about x and 0.3 rad about z, one axis flipped, and far from the origin."""
    c, s = np.cos(0.4), np.sin(0.4)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(0.3), np.sin(0.3)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-1, 1, 1]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def example(shape=(14, 22, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Two channels, zero at the borders and in a hole; two nested classes and a labelled voxel outside the region."""
    random = np.random.RandomState(0)
    image = (ndimage.gaussian_filter(random.randn(2, *shape), (0, 1, 1, 1)) * 200 + 60).astype(np.float32)
    image[:, :2] = image[:, -3:] = image[:, :, :4] = image[..., -1:] = 0
    image[:, 5:8, 8:12, 6:9] = 0
    image[:, 2:5, 4:8, 0:4] = 0  # a corner of the box that is outside
    label = np.zeros(shape, dtype=np.int8)
    label[4:10, 7:17, 5:12] = 1
    label[6:9, 9:13, 7:10] = 2
    label[0, 0, 0] = label[3, 5, 1] = 1
    return image, label


@pytest.fixture
def files(tmp_path):
    """The example as NIfTI files with a rotated affine, units and a description in the header."""
    image, label = example()
    paths = {}
    for name, array in (("image", np.moveaxis(image, 0, -1)), ("label", label)):
        file = nibabel.Nifti1Image(array, rotated_affine())
        file.header.set_xyzt_units("mm", "sec")
        file.header["descrip"] = b"made for a test"
        file.set_qform(rotated_affine(), 1)
        paths[name] = str(tmp_path / f"{name}_1.nii.gz")
        nibabel.save(file, paths[name])
    return paths


def chain(normalize: bool = True) -> Compose:
    """The transforms that do what preprocess_case does."""
    keys = ["image", "label"]
    steps = [
        LoadImaged(keys, allow_missing_keys=True, image_only=True),
        EnsureChannelFirstd(keys, allow_missing_keys=True),
        NonzeroCropd(keys),
        ResampleToSpacingd(keys, PLAN["spacing"], is_label=[False, True]),
    ]
    if normalize:
        steps.append(NormalizeChannelsd("image", PLAN["normalization"], PLAN["intensity"]))
    return Compose(steps)


def test_nonzero_region():
    image = np.zeros((2, 5, 6, 7), dtype=np.float32)
    image[0, 1:4, 1:5, 1:6] = -3  # negative values count
    image[0, 2, 2:4, 2:4] = 0  # a hole
    image[0, 3, 4, 3:] = 0  # open to the right
    image[1, 4, 5, 6] = np.nan  # NaN counts, and any channel does
    mask = nonzero_mask(image)
    assert mask.sum() == 3 * 4 * 5 - 4 - 3 + 1
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    assert fill_holes(mask).sum() == mask.sum() + 4
    assert bounding_box(mask) == ((1, 1, 1), (5, 6, 7))
    for seed in range(3):
        mask = np.random.RandomState(seed).rand(8, 9, 10) < 0.6
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_outside_is_marked_where_there_is_no_label():
    label = np.array([[[-5, 0, 2, -1, 0, 3]]], dtype=np.int8)
    inside = np.array([[[True, True, True, True, False, False]]])
    assert mark_outside(label, inside).tolist() == [[[0, 0, 2, -1, -1, 3]]]
    assert label[0, 0, 0] == -5  # the argument is left alone
    with pytest.raises(ValueError, match="signed integer"):
        mark_outside(label.astype(np.uint8), inside)


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


def test_plan_is_checked():
    assert check_plan({**PLAN, "patch_size": 128})["intensity"] == {0: CT}
    for change, message in (
        ({"spacing": [1, 1]}, "spacing"),
        ({"normalization": ["ct", "zscore"]}, "normalization"),
        ({"intensity": {"0": {"mean": 1}}}, r"lacks \['sd', 'p005', 'p995'\]"),
        ({"intensity": {"0": {**CT, "sd": 0}}}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            check_plan({**PLAN, **change})
    with pytest.raises(ValueError, match="image has 3"):
        check_plan(PLAN, channels=3)


def test_foreground_locations_are_the_originals():
    label = np.zeros((40, 30, 20), dtype=np.int8)
    label[5:35, 3:28, 2:18] = 1  # 12000 voxels, fewer those below
    label[10:12, 10, 3:6] = 3
    label[0] = -1
    locations = foreground_locations(label)
    assert {key: len(value) for key, value in locations.items()} == {1: 10000, 3: 6}
    random = np.random.RandomState(1234)  # as the original does it, on reversed axes
    for value in (1, 3):
        voxels = np.argwhere(label.transpose(2, 1, 0) == value)
        chosen = voxels[random.choice(len(voxels), len(locations[value]), replace=False)]
        np.testing.assert_array_equal(locations[value], chosen[:, ::-1])
    many = foreground_locations(np.ones((130, 100, 100), dtype=np.int8))
    assert len(many[1]) == 13000  # 1 % of the voxels


def test_case_against_a_direct_computation():
    image, label = example()
    result = preprocess_case(image, label, rotated_affine(), PLAN)
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


def test_affine_keeps_the_outer_borders():
    geometry = preprocess_case(*example(), rotated_affine(), PLAN).geometry
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
    case = preprocess_case(image, label, rotated_affine(spacing), {**PLAN, "spacing": target})
    np.testing.assert_array_equal(restore_labels(case.label, case.geometry), label)
    one_hot = np.stack([case.label <= 0, case.label == 1, case.label == 2]).astype(np.float32)
    np.testing.assert_array_equal(restore_probabilities(one_hot, case.geometry), label)


@pytest.mark.parametrize(("spacing", "dice"), [((1.5, 1, 2), 0.97), ((0.8, 0.8, 3.5), 0.95)])
def test_a_ball_survives_the_round_trip(spacing, dice):
    """A ball of 15 mm radius through the 1 mm grid and back, on coarser, finer and separate axes."""
    shape = [int(44 / value) for value in spacing]
    index = np.indices(shape).T * spacing
    ball = (np.linalg.norm(index - index.mean(axis=(0, 1, 2)), axis=-1) < 15).T.astype(np.int8)
    case = preprocess_case(np.ones((2, *shape), np.float32), ball, rotated_affine(spacing), PLAN)
    restored = restore_labels(case.label, case.geometry)
    assert 2 * (restored & ball).sum() / (restored.sum() + ball.sum()) > dice


def test_restoring_checks_the_shape():
    geometry = preprocess_case(*example(), rotated_affine(), PLAN).geometry
    with pytest.raises(ValueError, match=r"shape \(18, 13, 19\), got \(18, 13, 18\)"):
        restore_labels(np.zeros((18, 13, 18), dtype=np.int8), geometry)


@pytest.mark.parametrize("labelled", [True, False])
def test_transforms_equal_the_array_functions(files, labelled):
    data = files if labelled else {"image": files["image"]}
    d = chain()(data)
    image, affine = read_image(files["image"])
    label = read_label(files["label"])[0] if labelled else None
    expected = preprocess_case(image, label, affine, PLAN)
    assert d["image"].dtype == torch.float32
    np.testing.assert_array_equal(d["image"].numpy(), expected.image)
    np.testing.assert_array_equal(d["label"].numpy()[0], expected.label)
    for key in ("image", "label"):
        np.testing.assert_allclose(d[key].affine, expected.geometry.resampled_affine, atol=1e-9)


def test_orientation_in_the_plan_equals_monai_s_orientation(files):
    """Axes reordered and flipped before all else, with a spacing that differs by axis."""
    plan = {**PLAN, "orientation": "SPL", "spacing": [1.0, 1.5, 0.8]}
    image, affine = read_image(files["image"])
    case = preprocess_case(image, read_label(files["label"])[0], affine, plan)
    steps = list(chain().transforms)
    steps.insert(2, Orientationd(["image", "label"], axcodes="SPL", labels=None))
    steps[4] = ResampleToSpacingd(["image", "label"], plan["spacing"], is_label=[False, True])
    expected = Compose(steps)(dict(files))
    np.testing.assert_array_equal(case.image, expected["image"].numpy())
    np.testing.assert_array_equal(case.label, expected["label"].numpy()[0])
    np.testing.assert_allclose(case.geometry.resampled_affine, expected["image"].affine.numpy(), atol=1e-4)
    assert nibabel.aff2axcodes(case.geometry.affine) == ("S", "P", "L")
    shape, axcodes = read_grid(files["image"])[0][1:], nibabel.aff2axcodes(affine)
    assert case.geometry.shape == (shape[2], shape[1], shape[0]) and axcodes != ("S", "P", "L")
    for wrong in ("RAA", "RA", "XYZ", 3):
        with pytest.raises(ValueError, match="orientation must be axis codes"):
            check_plan({**PLAN, "orientation": wrong})


def test_prediction_returns_to_the_file(files, tmp_path):
    """Through a loader, a batch and decollation, to a file with the original's grid, affine and header."""
    batch = next(iter(DataLoader(Dataset([{"image": files["image"]}], chain()), batch_size=1)))
    random = np.random.RandomState(0)
    probabilities = random.dirichlet(np.ones(3), batch["image"].shape[2:]).transpose(3, 0, 1, 2)
    batch["pred"] = MetaTensor(torch.from_numpy(probabilities[None])).copy_meta_from(batch["image"])
    item = decollate_batch(batch)[0]
    post = Compose([RestoreOriginalGridd("pred"), SaveSegmentationd("pred", tmp_path / "out", "_seg")])
    d = post(item)

    image, affine = read_image(files["image"])
    expected = restore_probabilities(probabilities, preprocess_case(image, None, affine, PLAN).geometry)
    np.testing.assert_array_equal(d["pred"].numpy()[0], expected)
    np.testing.assert_array_equal(d["pred"].affine, affine)
    assert d["pred_file"] == str(tmp_path / "out" / "image_1_seg.nii.gz")
    saved, original = nibabel.load(d["pred_file"]), nibabel.load(files["image"])
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), expected)
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(saved.affine, original.affine)
    for field in ("descrip", "xyzt_units", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_y"):
        np.testing.assert_array_equal(saved.header[field], original.header[field])
    assert saved.header.get_zooms() == original.header.get_zooms()[:3]


def test_monai_inverts_the_chain(files):
    """Invertd gives the same classes as RestoreOriginalGridd, and the label returns as it came."""
    steps = chain()
    d = steps(files)
    one_hot = torch.stack([d["label"][0] <= 0, d["label"][0] == 1, d["label"][0] == 2]).float()
    d["pred"] = MetaTensor(one_hot.as_tensor()).copy_meta_from(d["image"])
    d["seg"] = MetaTensor(d["label"].as_tensor().clone()).copy_meta_from(d["label"])
    inverted = Invertd(["pred", "seg"], steps, orig_keys=["image", "label"], nearest_interp=False)(d)
    restored = RestoreOriginalGridd("pred")(d)["pred"]
    labels = RestoreOriginalGridd("label", is_label=True)(d)["label"]
    np.testing.assert_array_equal(inverted["pred"].argmax(0), restored[0])
    np.testing.assert_array_equal(inverted["seg"], labels)
    for result in (inverted["pred"], inverted["seg"], restored, labels):
        assert result.shape[1:] == (14, 22, 17)
        np.testing.assert_allclose(result.affine, rotated_affine(), atol=1e-5)
        assert result.applied_operations == []
    original = read_label(files["label"])[0]
    overlap = 2 * ((labels[0] == 1) & (original == 1)).sum() / ((labels[0] == 1).sum() + (original == 1).sum())
    assert overlap > 0.9


def test_other_spatial_transforms_are_refused(files):
    d = Compose([chain(), Flipd("image", spatial_axis=0)])({"image": files["image"]})
    d["pred"] = torch.rand(3, *d["image"].shape[1:])
    with pytest.raises(ValueError, match=r"'Flip'\]; undo these with monai.transforms.Invertd"):
        RestoreOriginalGridd("pred")(d)


def test_array_transforms():
    image = MetaTensor(torch.rand(2, 6, 5, 4), affine=torch.from_numpy(rotated_affine()))
    resample = ResampleToSpacing()
    result = resample(image)
    assert result.shape == (2, 12, 3, 5)  # 5 × 0.7 mm: 3.5 voxels, a little less in the float32 of a header
    back = resample.inverse(result)
    assert back.shape == image.shape
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-9)
    normalized = NormalizeChannels(["zscore", "none"])(image)
    assert isinstance(normalized, MetaTensor) and abs(float(normalized[0].mean())) < 1e-6
    with pytest.raises(ValueError, match="MetaTensor"):
        resample(torch.rand(2, 6, 5, 4))


def test_empty_image_is_named(files):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), files["image"])
    with pytest.raises(RuntimeError) as error:  # MONAI's Compose wraps what a transform raises
        chain()({"image": files["image"]})
    assert "image_1.nii.gz: the image is 0 everywhere" in str(error.value.__cause__)


def test_files_per_channel_and_errors(files, tmp_path):
    image, affine = read_image(files["image"])
    paths = [tmp_path / f"case_000{channel}.nii" for channel in range(2)]
    for channel, path in zip(image, paths):
        nibabel.save(nibabel.Nifti1Image(channel, affine), path)
    np.testing.assert_array_equal(read_image(paths)[0], image)
    assert read_grid(paths)[0] == read_grid(files["image"])[0] == (2, 14, 22, 17)

    moved = affine.copy()
    moved[0, 3] += 1
    nibabel.save(nibabel.Nifti1Image(image[1], moved), paths[1])
    with pytest.raises(ValueError, match="case_0001.nii: lies 1 mm away from .*case_0000.nii"):
        read_image(paths)
    nibabel.save(nibabel.Nifti1Image(image[1, 1:], affine), paths[1])
    with pytest.raises(ValueError, match=r"case_0001.nii: has \(13, 22, 17\) voxels"):
        read_image(paths)
    paths[1].write_bytes(b"no image")
    with pytest.raises(ValueError, match="case_0001.nii: cannot be read"):
        read_image(paths)
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), 0.5, np.float32), affine), paths[1])
    with pytest.raises(ValueError, match="case_0001.nii: 8 label values are no integers, the first is 0.5"):
        read_label(paths[1])
    with pytest.raises(ValueError, match="an affine is needed"):
        write_segmentation(np.zeros((2, 2, 2), int), paths[1], like="image.nrrd")


def test_labels_stored_as_floating_point_are_read(tmp_path):
    labels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "label.nii")
    read, _ = read_label(tmp_path / "label.nii")
    assert read.dtype == np.int8
    np.testing.assert_array_equal(read, labels)


def test_other_formats_go_through_monai(tmp_path):
    image, _ = example()
    np.save(tmp_path / "image.npy", image[0])
    read, affine = read_image(tmp_path / "image.npy")
    np.testing.assert_array_equal(read, image[:1])
    np.testing.assert_array_equal(affine, np.eye(4))
    assert read_grid(tmp_path / "image.npy")[0] == (1, *image.shape[1:])
    with pytest.raises(ValueError, match="nothing.mha: cannot be read"):
        read_image(tmp_path / "nothing.mha")
