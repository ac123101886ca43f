from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_trained
from helpers.datasets import AFFINE, SHAPE, make_case, save
from monai.bundle import run
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd

import mednext_monai
from mednext_monai import Predictor, predict
from mednext_monai.bundles import library

OPTIONS = {"patch_size": 16, "mirror": False, "device": "cpu", "out_channels": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A bundle with weights, a scan, and what the bundle's inference writes for it."""
    folder, hook = tmp_path_factory.mktemp("predictor"), sys.excepthook
    torch.manual_seed(3)
    bundle = make_trained("mednext_s_k3", folder, base_channels=4)
    save(folder / "scan.nii.gz", make_case(0)[0][..., 0])
    run(
        "inferring",
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
        input=str(folder / "scan.nii.gz"),
        output_dir=str(folder / "out"),
        save_probabilities=True,
        num_workers=0,
        logging_file=False,
        **OPTIONS,
    )
    sys.excepthook = hook  # which a run replaces
    return folder


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return Predictor(folder / "bundles" / "mednext_s_k3", **OPTIONS)


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    labels = np.asarray(nibabel.load(folder / "out" / "scan.nii.gz").dataobj)
    assert 0.01 < labels.mean() < 0.99  # both classes
    return labels


def images(folder: Path) -> dict:
    file = nibabel.load(folder / "scan.nii.gz")
    array = file.get_fdata().astype(np.float32)
    return {
        "path": folder / "scan.nii.gz",
        "text": str(folder / "scan.nii.gz"),
        "paths": [folder / "scan.nii.gz"],
        "nibabel": file,
        "in memory": nibabel.Nifti1Image(array[..., None], AFFINE),
        "array": array,
        "channels": array[None],
        "tensor": torch.from_numpy(array),
        "MetaTensor": MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(AFFINE)),
    }


def of_array(kind: str) -> dict:
    return {"affine": AFFINE} if kind in ("array", "channels", "tensor") else {}


@pytest.mark.parametrize(
    "kind", ["path", "text", "paths", "nibabel", "in memory", "array", "channels", "tensor", "MetaTensor"]
)
def test_each_kind_of_image_gives_what_the_command_writes(kind, folder, predictor, expected):
    image = images(folder)[kind]
    result = predictor(image, **of_array(kind))
    probabilities = predictor(image, **of_array(kind), probabilities=True)
    written = np.load(folder / "out" / "scan.npz")["probabilities"]
    if kind in ("path", "text", "paths", "nibabel", "in memory"):
        assert isinstance(result, nibabel.Nifti1Image) and result.get_data_dtype() == np.uint8
        assert probabilities.get_data_dtype() == np.float32
        for one in (result, probabilities):
            np.testing.assert_allclose(one.affine, AFFINE, atol=1e-6)
        result, probabilities = np.asarray(result.dataobj), np.moveaxis(np.asarray(probabilities.dataobj), -1, 0)
    elif kind == "MetaTensor":
        assert isinstance(result, MetaTensor) and isinstance(probabilities, MetaTensor)
        np.testing.assert_array_equal(result.affine, AFFINE)
        assert result.shape == (1, *SHAPE)
        result, probabilities = result.numpy()[0], probabilities.numpy()
    else:
        assert type(result) is type(probabilities) is type(image)
        result, probabilities = np.asarray(result), np.asarray(probabilities)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)
    assert (probabilities.shape, probabilities.dtype) == ((2, *SHAPE), np.float32)
    np.testing.assert_array_equal(probabilities.argmax(0), expected)
    np.testing.assert_array_equal(probabilities.astype(np.float16), written)


def test_header_of_a_file_is_that_of_its_segmentation(folder, predictor, expected):
    written, found = nibabel.load(folder / "out" / "scan.nii.gz").header, predictor(folder / "scan.nii.gz").header
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "datatype", "xyzt_units", "scl_slope", "cal_max"):
        np.testing.assert_array_equal(found[field], written[field], field)
    file = nibabel.load(folder / "scan.nii.gz")
    file.header.set_xyzt_units("meter")  # an image whose header counts in another unit keeps it
    file.set_sform(np.diag([0.001, 0.001, 0.001, 1]) @ AFFINE, code=2)
    found = predictor(file)
    assert (found.header.get_xyzt_units()[0], int(found.header["sform_code"])) == ("meter", 2)
    np.testing.assert_allclose(found.affine, file.affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)  # the same lengths, in meters


def test_transforms_of_a_meta_tensor_can_be_inverted(folder, predictor, expected):
    load = Compose([LoadImaged("image", ensure_channel_first=True), Orientationd("image", "LPS", labels=None)])
    image = load({"image": folder / "scan.nii.gz"})["image"]
    result = predictor(image)
    assert not np.array_equal(result.numpy()[0], expected)  # on the grid of the tensor
    back = Invertd("pred", load, orig_keys="image")({"image": image, "pred": result})["pred"]
    assert back.shape == (1, *SHAPE)
    np.testing.assert_array_equal(back.affine, AFFINE)


def test_dicom_series(folder, predictor, tmp_path):
    pytest.importorskip("pydicom")
    from helpers.dicom import volume, write_series

    values = volume(slices=18, rows=20, columns=22)
    write_series(tmp_path / "series", values)
    result = predictor(tmp_path / "series")
    assert isinstance(result, nibabel.Nifti1Image) and sorted(result.shape) == sorted(values.shape)


def test_one_call_is_the_same(folder, expected):
    result = predict(folder / "scan.nii.gz", folder / "bundles" / "mednext_s_k3", **OPTIONS)
    np.testing.assert_array_equal(np.asarray(result.dataobj), expected)


def test_weights_are_loaded_once_and_results_do_not_depend_on_earlier_ones(folder, monkeypatch, expected):
    calls = []
    from mednext_monai.handlers import weights_loader

    load = weights_loader.load_weights
    monkeypatch.setattr(weights_loader, "load_weights", lambda *args: calls.append(args) or load(*args))
    predictor = Predictor(folder / "bundles" / "mednext_s_k3", **OPTIONS)
    predictor(make_case(4, shape=(30, 9, 21))[0][..., 0], affine=np.diag([2, 1, 1, 1]), probabilities=True)
    np.testing.assert_array_equal(np.asarray(predictor(folder / "scan.nii.gz").dataobj), expected)
    assert len(calls) == 1
    assert not predictor._probabilities._held and predictor._evaluator.state.output is None


def test_folds_and_postprocessing(folder, tmp_path):
    bundle, image = folder / "bundles" / "mednext_s_k3", folder / "scan.nii.gz"
    (bundle / "models" / "fold_1").mkdir(exist_ok=True)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state["out_0.conv_out.bias"] += torch.tensor([0.5, -0.5])
    torch.save(state, bundle / "models" / "fold_1" / "model.pt")
    means = [
        np.asarray(Predictor(bundle, **OPTIONS, **fold)(image, probabilities=True).dataobj)
        for fold in ({"fold": 0}, {"fold": 1}, {"folds": [0, 1]})
    ]
    assert abs(means[0] - means[1]).max() > 0.1
    np.testing.assert_allclose(means[2], (means[0] + means[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"miror": False}, "there is no option miror. Did you mean mirror?"),
        ({"mirror": "maybe"}, "mirror must be true or false, got 'maybe'"),
        ({"output_dir": "x"}, "output_dir does not concern a Predictor"),
        ({"in_channels": 2}, "model.pt does not match the network"),
    ],
)
def test_options_that_are_refused(options, message, folder):
    with pytest.raises(ValueError, match=message):
        Predictor(folder / "bundles" / "mednext_s_k3", **options)


def test_bundles_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bundle: .*nothing is not a bundle, it has no configs/inference.json"):
        Predictor(tmp_path / "nothing")
    assert not library.has_weights("mednext_m_k5")
    with pytest.raises((ValueError, FileNotFoundError), match="model.pt"):
        Predictor("mednext_m_k5")


ARRAY = make_case(0)[0][..., 0]


@pytest.mark.parametrize(
    ("image", "affine", "message"),
    [
        (ARRAY, None, r"affine: an array or tensor needs one, \(4, 4\)"),
        (ARRAY, np.eye(3), "the affine is not an invertible map"),
        (ARRAY, np.zeros((4, 4)), "the affine is not an invertible map"),
        (ARRAY[0], AFFINE, r"must have the shape \(C, X, Y, Z\) or \(X, Y, Z\), got \(18, 12\)"),
        (np.stack([ARRAY] * 2), AFFINE, r"has 2 channel\(s\), expected 1"),
        (np.where(ARRAY > 50, np.nan, ARRAY), AFFINE, "NaN or infinite"),
        (ARRAY * 1j, AFFINE, "contains values of type complex"),
        (np.zeros_like(ARRAY), AFFINE, "every voxel is zero"),
        (MetaTensor(torch.from_numpy(ARRAY)), AFFINE, "affine: only for an array or tensor; monai.MetaTensor has its"),
        (nibabel.Nifti1Image(ARRAY, AFFINE), AFFINE, "affine: only for"),
        ("nowhere.nii.gz", None, "nowhere.nii.gz"),
        (["nowhere.nii.gz"], None, "nowhere.nii.gz: no such file"),
        (7, None, "image must be a path, .*got builtins.int"),
        ([], None, "image must be a path, .*got builtins.list"),
    ],
)
def test_images_that_are_refused(image, affine, message, predictor):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predictor(image, affine=affine)


def test_a_folder_of_several_images_is_refused(folder, predictor, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", ARRAY)
    with pytest.raises(ValueError, match="has 2 images, a, b, ...; give one of them"):
        predictor(tmp_path)


def test_names_of_the_package_are_those_of_the_module():
    assert mednext_monai.Predictor is Predictor and {"Predictor", "predict"} <= set(dir(mednext_monai))
