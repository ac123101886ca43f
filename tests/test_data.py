"""Folds, data lists, stored cases and the writing of predictions."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from mednext_monai.data import (
    AtomicNibabelWriter,
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
