"""Folds, data lists, stored cases, seeds, waiting for each other, and the writing of predictions."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor
from monai.transforms import SaveImage

from mednext_monai.data import (
    AtomicNibabelWriter,
    check_cases,
    inference_cases,
    preprocessed_cases,
    training_cases,
)
from mednext_monai.utils import set_seed, wait_for_all


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


def test_a_seed_repeats_and_none_draws_a_fresh_one(caplog):
    caplog.set_level("INFO")
    draws = []
    for seed in (5, 5, None, None):
        draws.append((set_seed(seed), torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1] and draws[0][0] == 5
    assert len(set(draws[1:])) == 3
    assert f"seed {draws[3][0]}, drawn for this run" in caplog.text
    set_seed(draws[3][0])  # the seed that was logged gives the same numbers
    assert torch.rand(1).item() == draws[3][1]
    for wrong in (-1, 0.5, True, "7"):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            set_seed(wrong)
    torch.backends.cudnn.benchmark = False


def _waiting_process(rank: int, folder: str) -> None:
    Path(folder, f"ready_{rank}").touch()
    while len(list(Path(folder).glob("ready_*"))) < 2:  # the timeout is for both to have started
        time.sleep(0.01)
    timeout = timedelta(seconds=4)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timeout)
    if rank == 0:
        time.sleep(6)
        Path(folder, "done").touch()
    wait_for_all()
    assert Path(folder, "done").exists()
    dist.destroy_process_group()


def test_processes_wait_for_each_other_beyond_the_groups_timeout(tmp_path):
    wait_for_all()  # alone
    torch.multiprocessing.spawn(_waiting_process, (str(tmp_path),), nprocs=2)


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
