"""Folds, data lists, caches and the writing of predictions."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from reference import load_reference

from mednext_monai.data import (
    AtomicNibabelWriter,
    cache_folder,
    hash_case,
    inference_cases,
    kfold_indices,
    training_cases,
)


@pytest.mark.parametrize(("count", "folds"), load_reference("folds").items())
def test_folds_are_the_recorded_ones(count, folds):
    assert kfold_indices(int(count)) == folds


def test_fewer_cases_than_folds():
    with pytest.raises(ValueError, match="at least 5 cases, got 4"):
        kfold_indices(4)


def test_training_and_validation_share_no_case_and_lose_none(dataset):
    everything = [case["id"] for case in training_cases(dataset, "all")]
    validated = []
    for fold in range(5):
        training = [case["id"] for case in training_cases(dataset, fold, "training")]
        validation = [case["id"] for case in training_cases(dataset, fold, "validation")]
        assert sorted(training + validation) == everything
        validated += validation
    assert sorted(validated) == everything == [f"box_{i}" for i in range(6)]


def test_images_to_segment_come_from_the_list_a_folder_or_a_file(dataset):
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]
    assert len(inference_cases("nowhere", dataset / "imagesTr")) == 6
    assert [case["id"] for case in inference_cases("nowhere", dataset / "imagesTr" / "box_1.nii.gz")] == ["box_1"]
    (dataset / "dataset.json").unlink()
    assert [case["id"] for case in inference_cases(dataset)] == ["box_9"]


def test_a_replaced_file_is_another_case_for_the_cache(dataset):
    case = training_cases(dataset, 0)[0]
    before = hash_case(case)
    assert hash_case(case) == before
    os.utime(case["label"], ns=(1, 1))
    assert hash_case(case) != before


def test_cached_volumes_of_other_settings_lie_elsewhere():
    one = cache_folder("cache", spacing=[1.0, 1.0, 1.0])
    assert one.startswith("cache") and one == cache_folder("cache", spacing=[1.0, 1.0, 1.0])
    assert one != cache_folder("cache", spacing=[2.0, 1.0, 1.0])
    assert cache_folder(None, spacing=[1.0, 1.0, 1.0]) is None


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
