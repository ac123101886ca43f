"""``Preprocessd`` does what ``preprocess_case`` does, from files and from memory, and its inverses agree."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import torch
from helpers.datasets import example, rotated_affine
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Flipd, Invertd, LoadImaged, SaveImaged

from mednext_monai.data.io import read_image, read_label
from mednext_monai.preprocessing.case import preprocess_case
from mednext_monai.preprocessing.geometry import restore_probabilities
from mednext_monai.transforms import LoadLabeld, Preprocessd, RestoreClassesd, SaveImageOnSourceGridd

CT = {"mean": 50.0, "sd": 20.0, "p005": -30.0, "p995": 160.0}
SETTINGS = {"spacing": [1, 1, 1], "normalization": ["CT", "masked_zscore"], "intensity": {"0": CT}}
KINDS = ("path", "channel files", "meta tensor", "array")


def preprocessing(**changes) -> Preprocessd:
    return Preprocessd("image", **{**SETTINGS, **changes})


def as_input(kind: str, files: dict[str, str], tmp_path) -> dict:
    """The example's image and label as paths or in memory."""
    image, affine = read_image(files["image"])
    label = read_label(files["label"])[0]
    if kind == "path":
        return dict(files)
    if kind == "channel files":
        paths = [str(tmp_path / f"case_000{c}.nii.gz") for c in range(len(image))]
        for path, channel in zip(paths, image):
            nibabel.save(nibabel.Nifti1Image(channel, affine), path)
        return {"image": paths, "label": files["label"]}
    if kind == "meta tensor":
        tensors = [torch.from_numpy(image), torch.from_numpy(label[None])]
        return dict(zip(("image", "label"), (MetaTensor(t, affine=torch.from_numpy(affine)) for t in tensors)))
    return {"image": image, "label": label, "image_meta_dict": {"affine": affine}}


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [None, "SPL"])
def test_equals_the_array_function(example_files, tmp_path, kind, labeled, orientation):
    data = as_input(kind, example_files, tmp_path)
    if not labeled:
        del data["label"]
    d = preprocessing(orientation=orientation)(data)
    image, affine = read_image(example_files["image"])
    label = read_label(example_files["label"])[0] if labeled else None
    expected = preprocess_case(image, label, affine, {**SETTINGS, "orientation": orientation})
    assert d["image"].dtype == torch.float32
    np.testing.assert_array_equal(d["image"].numpy(), expected.image)
    np.testing.assert_array_equal(d["image"].meta["nonzero"], expected.label >= 0)
    assert ("label" in d) == labeled
    for key in ("image", "label") if labeled else ("image",):
        np.testing.assert_allclose(d[key].affine, expected.geometry.resampled_affine, atol=1e-9)
    if labeled:
        np.testing.assert_array_equal(d["label"].numpy()[0], expected.label)


def test_a_volume_without_channel_axis_has_one_channel():
    image, _ = example()
    settings = {"normalization": ["zscore"]}
    flat = MetaTensor(torch.from_numpy(image[0]), affine=torch.from_numpy(rotated_affine()))
    one = MetaTensor(torch.from_numpy(image[:1]), affine=torch.from_numpy(rotated_affine()))
    results = [Preprocessd("image", **settings)({"image": tensor})["image"] for tensor in (flat, one)]
    assert results[0].shape == (1, 18, 13, 19) and torch.equal(*results)


def test_what_loadimaged_read_gives_the_same(example_files):
    """MONAI Label and Deploy load the image themselves."""
    data = {"image": example_files["image"]}
    loaded = LoadImaged("image", image_only=True, ensure_channel_first=True)(data)
    torch.testing.assert_close(preprocessing()(loaded)["image"], preprocessing()(data)["image"], rtol=0, atol=0)


def test_wrong_input_is_named(example_files, tmp_path):
    transform = preprocessing()
    with pytest.raises(ValueError, match="image must be a path, a MetaTensor, or an array .* without an affine"):
        transform({"image": np.zeros((2, 4, 4, 4))})
    with pytest.raises(ValueError, match=r"image must have the shape .*got \(4, 4\)"):
        transform({"image": MetaTensor(torch.zeros(4, 4))})
    with pytest.raises(ValueError, match="keys must name one image"):
        Preprocessd(["image", "label"])
    with pytest.raises(ValueError, match="image_1.nii.gz: preprocessing settings: normalization lists 1 channels"):
        Preprocessd("image")({"image": example_files["image"]})
    with pytest.raises(KeyError):
        transform({})
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), example_files["image"])
    with pytest.raises(ValueError, match="image_1.nii.gz: the image is 0 everywhere"):
        transform({"image": example_files["image"]})


@pytest.mark.parametrize("orientation", [None, "SPL"])
def test_prediction_returns_to_the_file(example_files, tmp_path, orientation):
    """Through a loader, a batch and decollation, to a file with the original's grid, affine and header."""
    case = {"id": "the case", "image": example_files["image"]}
    batch = next(iter(DataLoader(Dataset([case], preprocessing(orientation=orientation)), batch_size=1)))
    random = np.random.RandomState(0)
    probabilities = random.dirichlet(np.ones(3), batch["image"].shape[2:]).transpose(3, 0, 1, 2).astype(np.float32)
    batch["pred"] = MetaTensor(torch.from_numpy(probabilities[None])).copy_meta_from(batch["image"])
    item = decollate_batch(batch)[0]
    d = Compose([RestoreClassesd("pred"), SaveImageOnSourceGridd("pred", tmp_path / "out")])(item)

    image, affine = read_image(example_files["image"])
    if orientation is None:
        geometry = preprocess_case(image, None, affine, SETTINGS).geometry
        np.testing.assert_array_equal(d["pred"].numpy()[0], restore_probabilities(probabilities, geometry))
    assert d["pred"].shape == (1, *image.shape[1:]) and d["pred"].dtype == torch.uint8
    np.testing.assert_array_equal(d["pred"].affine, affine)
    assert d["pred"].meta["saved_to"] == str(tmp_path / "out" / "the case.nii.gz")
    saved, original = nibabel.load(d["pred"].meta["saved_to"]), nibabel.load(example_files["image"])
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), d["pred"].numpy()[0])
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(saved.affine, original.affine)
    for field in ("xyzt_units", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_y"):
        np.testing.assert_array_equal(saved.header[field], original.header[field])
    assert saved.header.get_zooms() == original.header.get_zooms()[:3]


@pytest.mark.parametrize("spacing", [(2.0, 0.7, 1.2), (0.6, 0.6, 4.0)])
@pytest.mark.parametrize("orientation", [None, "SPL"])
def test_monais_invertd_and_the_streaming_inverse_give_the_same_classes(example_files, spacing, orientation):
    image, label = example()
    affine = torch.from_numpy(rotated_affine(spacing))
    transform = Compose([preprocessing(orientation=orientation)])
    d = transform({"image": MetaTensor(torch.from_numpy(image), affine=affine), "label": label})
    random = np.random.RandomState(1)
    probabilities = random.dirichlet(np.ones(4), d["image"].shape[1:]).transpose(3, 0, 1, 2).astype(np.float32)
    d["pred"] = MetaTensor(torch.from_numpy(probabilities)).copy_meta_from(d["image"])
    inverted = Invertd(["pred"], transform, orig_keys=["image"], nearest_interp=False)(d)["pred"]
    restored = RestoreClassesd("pred")(d)["pred"]
    assert inverted.shape == (4, *image.shape[1:]) and float(inverted.max()) <= 1
    np.testing.assert_array_equal(inverted.argmax(0), restored[0])
    for result in (inverted, restored):
        np.testing.assert_allclose(result.affine, affine)
        assert result.applied_operations == []


def test_the_inverse_of_a_label_is_the_label(example_files):
    transform = preprocessing(spacing=[2.0, 0.7, 1.2])  # of the file: nothing is interpolated
    d = transform(dict(example_files))
    back = transform.inverse({"label": d["label"]})["label"]
    label = read_label(example_files["label"])[0].copy()
    label[0, 0, 0] = 0  # outside the crop nothing returns
    np.testing.assert_array_equal(back[0], label)
    assert back.dtype == torch.int8 and torch.allclose(back.affine, torch.from_numpy(rotated_affine()), atol=1e-5)


def test_other_spatial_transforms_are_refused(example_files):
    d = Compose([preprocessing(), Flipd("image", spatial_axis=0)])({"image": example_files["image"]})
    d["pred"] = torch.rand(3, *d["image"].shape[1:])
    with pytest.raises(ValueError, match=r"'Flip'\]; undo these with monai.transforms.Invertd"):
        RestoreClassesd("pred")(d)


@pytest.mark.parametrize("channels", [1, 2])
def test_all_48_axis_orders_come_back(tmp_path, channels):
    """Of images with one and with several channels, as channel files and as one 4D file, with one slice or many."""
    label = np.zeros((5, 4, 3), np.int16)
    label[2:4, 1:3, 1] = 1
    transform = Preprocessd("image", normalization=["zscore"] * channels)
    save = Compose([RestoreClassesd("pred"), SaveImageOnSourceGridd("pred", tmp_path / "out")])
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[list(order)] * signs
        shape = (1, *label.shape[1:]) if number % 5 == 0 else label.shape
        image = np.random.RandomState(number).rand(*shape, channels).astype(np.float32) + 1
        path = str(tmp_path / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image if channels > 1 else image[..., 0], affine), path)
        d = transform({"image": path, "id": f"case {number}"})
        truth = label[: shape[0]] if shape[0] > 1 else label[2:3]
        d["pred"] = torch.from_numpy(np.stack([truth == 0, truth == 1]).astype(np.float32))
        saved = nibabel.load(save(d)["pred"].meta["saved_to"])
        assert saved.shape == truth.shape
        np.testing.assert_array_equal(np.asanyarray(saved.dataobj), truth)
        np.testing.assert_array_equal(saved.affine, affine)


def test_a_prediction_is_named_after_its_case_or_else_its_file(tmp_path):
    pred = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.eye(4) * 2, meta={"filename_or_obj": "in/a.b_0000.mha"})
    named = MetaTensor(
        torch.ones(1, 4, 5, 6), affine=torch.eye(4) * 2, meta={"filename_or_obj": "in/a.b_0000.mha", "case_id": "a.b"}
    )
    save = SaveImageOnSourceGridd("pred", tmp_path)
    save({"pred": pred})
    save({"pred": named})
    assert isinstance(save, SaveImaged)  # what MONAI Label looks for
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.b.nii.gz", "a.b_0000.nii.gz"]


def test_labels_are_read_on_their_own_grid(example_files):
    label = LoadLabeld("label")({"label": example_files["label"]})["label"]
    np.testing.assert_array_equal(label[0], read_label(example_files["label"])[0])
    assert label.dtype == torch.int8 and label.meta["filename_or_obj"] == example_files["label"]
    torch.testing.assert_close(label.affine, torch.from_numpy(rotated_affine()), rtol=0, atol=1e-5)
