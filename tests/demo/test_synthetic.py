"""Promises of the synthetic data set: it is sound, hard enough and the same every time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednext_monai.data import check_cases, inference_cases, training_cases
from mednext_monai.demo.synthetic import LABELS, make_case, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demo") / "dataset", num_training=6, num_test=2, seed=3)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_data_set_passes_the_checks_before_training(dataset, caplog):
    training, validation = (training_cases(str(dataset), 0, section) for section in ("training", "validation"))
    assert [len(training), len(validation)] == [4, 2]
    check_cases(training + validation, in_channels=1, out_channels=len(LABELS))
    check_cases(inference_cases(str(dataset)), in_channels=1)
    assert not caplog.records  # every case has foreground
    assert sorted(files_of(dataset)) == sorted(
        ["dataset.json"]
        + [f"{kind}sTr/synthetic_{i:02d}.nii.gz" for kind in ("image", "label") for i in range(6)]
        + [f"{kind}sTs/synthetic_test_{i:02d}.nii.gz" for kind in ("image", "label") for i in range(2)]
    )


def test_dataset_json_is_of_decathlon_layout(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "organ", "2": "core", "3": "vessel"}
    assert [content["numTraining"], content["numTest"], content["modality"]] == [6, 2, {"0": "synthetic"}]
    assert content["training"][5] == {
        "image": "./imagesTr/synthetic_05.nii.gz",
        "label": "./labelsTr/synthetic_05.nii.gz",
    }
    assert content["test"] == ["./imagesTs/synthetic_test_00.nii.gz", "./imagesTs/synthetic_test_01.nii.gz"]


def test_geometry_is_anisotropic_oblique_off_the_origin_and_differs(dataset):
    files = [nib.load(file) for file in sorted(dataset.glob("images*/*.nii.gz"))]
    spacings = np.array([nib.affines.voxel_sizes(file.affine) for file in files])
    assert spacings[:, :2].min() >= 0.9 and spacings[:, :2].max() <= 1.2
    assert spacings[:, 2].min() >= 1.5 and spacings[:, 2].max() <= 2.5
    assert len(np.unique(spacings.round(3), axis=0)) == len(files)
    extents = spacings * np.array([file.shape for file in files])
    assert extents.min() > 54 and extents.max() < 72  # 56 to 70 mm, rounded to whole voxels
    for file in files:
        cosines = np.abs(file.affine[:3, :3]) / nib.affines.voxel_sizes(file.affine)
        tilt = np.rad2deg(np.arccos(cosines.max(0).min()))
        assert 1 < tilt <= 20
        assert np.abs(file.affine[:3, 3]).max() > 5
        np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-3)
    assert len({nib.aff2axcodes(file.affine) for file in files}) > 1  # axes run either way


def test_brightness_does_not_tell_the_structures_apart(dataset):
    for image_file in sorted((dataset / "imagesTr").iterdir()):
        image = np.asarray(nib.load(image_file).dataobj)
        label = np.asarray(nib.load(dataset / "labelsTr" / image_file.name).dataobj)
        assert image.dtype == np.int16 and label.dtype == np.uint8
        counts = np.bincount(label.ravel(), minlength=4)
        assert (counts[1:] > 300).all() and counts[0] > 0.85 * label.size
        body, core = image[(label == 0) & (image > 0)], image[label == 2]
        assert 0.8 < core.mean() / np.median(body) < 1.6
        as_bright_as_the_vessel = (image > np.median(image[label == 3]) * 0.75) & (label == 0)
        assert as_bright_as_the_vessel.sum() > 30
        assert (image[label > 0] > 0).all()


def test_same_arguments_give_the_same_bytes_and_cases_do_not_depend_on_their_number(dataset, tmp_path):
    again = files_of(write_dataset(tmp_path / "again", num_training=6, num_test=2, seed=3))
    assert again == files_of(dataset)
    fewer = files_of(write_dataset(tmp_path / "fewer", num_training=1, num_test=1, seed=3))
    del fewer["dataset.json"]
    assert all(again[name] == content for name, content in fewer.items())
    other = files_of(write_dataset(tmp_path / "other", num_training=1, num_test=0, seed=4))
    assert other["imagesTr/synthetic_00.nii.gz"] != again["imagesTr/synthetic_00.nii.gz"]


def test_extent_sets_the_size():
    image, label, affine = make_case(np.random.default_rng(0), extent=(24.0, 24.0))
    np.testing.assert_allclose(image.shape * nib.affines.voxel_sizes(affine), 24, atol=1.3)
    assert image.shape == label.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_training": 0}, "num_training must be at least 1, num_test and seed at least 0, got 0, 2, 0"),
        ({"num_test": -1}, "got 10, -1, 0"),
        ({"seed": -5}, "got 10, 2, -5"),
        ({"extent": (70.0, 56.0)}, r"16 or more, got (70.0, 56.0)"),
        ({"extent": (4.0, 5.0)}, r"16 or more, got (4.0, 5.0)"),
    ],
)
def test_impossible_data_sets_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_dataset(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
