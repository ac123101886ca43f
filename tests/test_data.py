"""Folds, data lists, stored cases, and the writing of predictions."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import describe, make_nnunet, save
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImage
from monai.utils import ensure_tuple

from mednext_monai.data import (
    AtomicNibabelWriter,
    NameByCased,
    check_cases,
    inference_cases,
    preprocessed_cases,
    training_cases,
)


def test_training_and_validation_share_no_case_and_lose_none(dataset):
    everything = [case["id"] for case in training_cases(dataset, "all")]
    validated = []
    for fold in range(5):
        training = [case["id"] for case in training_cases(dataset, fold, "training")]
        validation = [case["id"] for case in training_cases(dataset, fold, "validation")]
        assert sorted(training + validation) == everything
        validated += validation
    assert sorted(validated) == everything == [f"box_{i}" for i in range(6)]


def test_the_users_own_folds_win(dataset):
    own = [{"train": ["box_0", "box_1"], "val": ["box_5"]}]
    assert [case["id"] for case in training_cases(dataset, 0, "validation", own)] == ["box_5"]
    (dataset / "splits_final.json").write_text(
        json.dumps([{"train": [f"box_{i}" for i in range(5)], "val": ["box_5"]}])
    )
    assert [case["id"] for case in training_cases(dataset, 0, "validation")] == ["box_5"]
    with pytest.raises(ValueError, match=r"fold 0 names \['box_77'\]"):
        training_cases(dataset, 0, "validation", [{"train": [], "val": ["box_77"]}])


def test_one_file_per_channel_is_checked_and_listed(dataset):
    """nnU-Net v2 layout."""
    for image in (dataset / "imagesTr").iterdir():
        stem = image.name.removesuffix(".nii.gz")
        (dataset / "imagesTr" / f"{stem}_0001.nii.gz").write_bytes(image.read_bytes())
        image.rename(dataset / "imagesTr" / f"{stem}_0000.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "outer": 1, "inner": 2}}
    (dataset / "dataset.json").write_text(json.dumps({**description, "numTraining": 6, "file_ending": ".nii.gz"}))
    cases = training_cases(dataset, "all")
    assert [len(case["image"]) for case in cases] == [2] * 6
    check_cases(cases, 2, 3)
    with pytest.raises(ValueError, match="box_0: has 2 channel files; in_channels is 1"):
        check_cases(cases, 1, 3)


def test_images_to_segment_come_from_the_list_a_folder_or_a_file(dataset):
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]
    assert len(inference_cases("nowhere", dataset / "imagesTr")) == 6
    assert [case["id"] for case in inference_cases("nowhere", dataset / "imagesTr" / "box_1.nii.gz")] == ["box_1"]
    (dataset / "dataset.json").unlink()
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]


def test_a_case_on_both_sides_of_a_fold_is_preprocessed_once(dataset, tmp_path):
    cases = training_cases(dataset, "all")[:2]
    plan = {"spacing": [2, 2, 2], "normalization": ["zscore"]}
    sides = preprocessed_cases(cases, cases[:1], plan, str(tmp_path / "cache"))
    assert [[case["id"] for case in sides[side]] for side in ("training", "validation")] == [
        ["box_0", "box_1"],
        ["box_0"],
    ]
    assert sides["validation"][0] == sides["training"][0]
    assert all(os.path.isfile(sides["training"][1][key]) for key in ("image", "label", "foreground"))


@pytest.fixture
def images(tmp_path):
    """Write images, each of the given channels, and return their folder."""

    def make(*names: str, channels: int = 1) -> Path:
        folder = tmp_path / "images"
        for name in names:
            values = np.arange(120 * channels, dtype=np.float32).reshape(4, 5, 6, channels)
            save(folder / name, values if channels > 1 else values[..., 0])
        return folder

    return make


def listed(cases: list[dict]) -> dict[str, list[str]]:
    """File names by id."""
    return {case["id"]: [Path(path).name for path in ensure_tuple(case["image"])] for case in cases}


def test_channel_files_of_a_folder_make_one_case(images):
    folder = images("b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz")
    (folder / "._a_0000.nii.gz").write_bytes(b"of macOS")
    (folder / "notes.txt").write_text("no image")
    both = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    assert listed(inference_cases("nowhere", folder, 2)) == both
    assert listed(inference_cases("nowhere", folder / "b_0001.nii.gz", 2)) == {"b": both["b"]}
    assert len(listed(inference_cases("nowhere", folder, 1))) == 4  # of one channel each: nothing says otherwise
    check_cases(inference_cases("nowhere", folder, 2), 2)


def test_files_that_all_are_channel_0_are_named_after_their_case(images):
    assert listed(inference_cases("nowhere", images("a_0000.nii.gz", "b_0000.nii"))) == {
        "a": ["a_0000.nii.gz"],
        "b": ["b_0000.nii"],
    }
    assert list(listed(inference_cases("nowhere", images("c.nii.gz")))) == ["a_0000", "b_0000", "c"]


def test_a_number_may_be_that_of_a_case_where_one_file_has_all_channels(images):
    folder = images("case_0000.nii.gz", "case_0001.nii.gz", channels=2)
    assert list(listed(inference_cases("nowhere", folder, 2))) == ["case_0000", "case_0001"]
    assert list(listed(inference_cases("nowhere", folder / "case_0001.nii.gz", 2))) == ["case_0001"]


def test_missing_and_superfluous_channels_are_named_in_one_list(images):
    folder = images("a_0000.nii.gz", "a_0002.nii.gz", "b_0001.nii.gz", "c.nii.gz", "a_0000.nii")
    with pytest.raises(ValueError, match=r"images: 5 problem\(s\)") as error:
        inference_cases("nowhere", folder, 2)
    for line in (
        "a_0000.nii.gz: case a has two files of this channel",
        "a_0002.nii.gz: is channel 2, counted from 0; in_channels is 2",
        "c.nii.gz: its name does not end in the number of a channel, such as _0000",
        "a: has no file a_0001; in_channels is 2",
        "b: has no file b_0000; in_channels is 2",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="b: has no file b_0000; in_channels is 2"):
        inference_cases("nowhere", folder / "b_0001.nii.gz", 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_test_images_of_an_nnunet_data_set_are_grouped(tmp_path, version):
    make_nnunet(tmp_path, version, cases=2)
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    both = {f"case_0{i}": [f"case_0{i}_{c:04d}.nii.gz" for c in range(2)] for i in range(2)}
    assert listed(inference_cases(tmp_path, in_channels=2)) == both  # the folder
    describe(tmp_path, test=["./imagesTs/case_01.nii.gz"])
    expected = both if version == 2 else {"case_01": both["case_01"]}  # nnU-Net v2 knows no such list
    assert listed(inference_cases(tmp_path, in_channels=2)) == expected
    (tmp_path / "imagesTs" / "case_01_0001.nii.gz").unlink()
    if version == 2:
        with pytest.raises(ValueError, match="case_01: has no file case_01_0001"):
            inference_cases(tmp_path, in_channels=2)
    else:
        with pytest.raises(ValueError, match="case_01_0001.nii.gz: the file does not exist"):
            check_cases(inference_cases(tmp_path, in_channels=2), 2)


def test_one_channel_of_an_nnunet_data_set_is_checked_as_well(tmp_path):
    make_nnunet(tmp_path, 2, cases=2, channels=("CT",))
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    assert list(listed(inference_cases(tmp_path))) == ["case_00", "case_01"]
    save(tmp_path / "imagesTs" / "case_00_0001.nii.gz", np.ones((4, 5, 6), np.float32))
    with pytest.raises(ValueError, match="case_00_0001.nii.gz: is channel 1, counted from 0; in_channels is 1"):
        inference_cases(tmp_path)


def test_nrrd_and_mha_are_listed_checked_and_loaded_like_nifti(images, dataset):
    itk = pytest.importorskip("itk")
    folder = images("a_0000.nii.gz", "a_0001.nii.gz")
    nifti = inference_cases("nowhere", folder, 2)[0]
    load = LoadImaged("image", ensure_channel_first=True, image_only=True)
    expected = load(nifti)["image"]
    for ending in (".mha", ".nrrd"):
        other = folder.parent / ending[1:]
        other.mkdir()
        for file in nifti["image"]:
            itk.imwrite(itk.imread(file), str(other / Path(file).name.replace(".nii.gz", ending)))
        cases = inference_cases("nowhere", other, 2)
        check_cases(cases, 2)
        image = load(cases[0])["image"]
        assert image.shape == (2, 4, 5, 6)
        torch.testing.assert_close(image.as_tensor(), expected.as_tensor())
        torch.testing.assert_close(image.affine, expected.affine, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="has 2 channel files; in_channels is 3"):
            check_cases(cases, 3)


def test_a_format_whose_package_is_missing_says_which(tmp_path):
    if importlib.util.find_spec("itk"):
        pytest.skip("the package is installed")
    (tmp_path / "a.mha").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.mha: cannot be read as an image: .*pip install itk"):
        check_cases(inference_cases("nowhere", tmp_path), 1)


def test_a_prediction_is_named_after_its_case(tmp_path):
    pred = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.eye(4) * 2, meta={"filename_or_obj": "in/a.b_0000.mha"})
    named = NameByCased("pred")({"id": "a.b", "pred": pred})["pred"]
    assert pred.meta["filename_or_obj"] == "in/a.b_0000.mha" and torch.equal(named.affine, pred.affine)
    SaveImage(
        tmp_path, "", ".nii.gz", resample=False, separate_folder=False, print_log=False, writer=AtomicNibabelWriter
    )(named)
    assert [file.name for file in tmp_path.iterdir()] == ["a.b.nii.gz"]


def test_a_prediction_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    image = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.eye(4), meta={"filename_or_obj": "case.nii.gz"})
    save = SaveImage(
        tmp_path, "", ".nii.gz", resample=False, separate_folder=False, print_log=False, writer=AtomicNibabelWriter
    )
    save(image)
    assert [file.name for file in tmp_path.iterdir()] == ["case.nii.gz"]
    before = (tmp_path / "case.nii.gz").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Exception, match="disk full"):
        save(MetaTensor(image * np.float32(2), meta=image.meta))
    assert [file.name for file in tmp_path.iterdir()] == ["case.nii.gz"]
    assert (tmp_path / "case.nii.gz").read_bytes() == before
