"""A bundle's workflows, each run as a user runs it: training, resuming, UpKern, evaluation, inference, several GPUs."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from planning_data import make_nnunet

from mednext_monai.networks import create_mednext
from mednext_monai.planning import plan
from mednext_monai.weights import describe, read_state_dict

SHORT = ("--epochs", "2", "--iterations_per_epoch", "3", "--val_interval", "1")


def test_train_evaluate_segment_and_start_a_larger_kernel(run_bundle, dataset, tmp_path):
    models, outputs = run_bundle.bundle / "models", run_bundle.bundle / "eval"
    log = run_bundle("training", "train", options=SHORT).stdout
    assert "mean_train_loss" in log and "val_mean_dice" in log
    assert {"model.pt", "model_best.pt", "last.pt"} <= {file.name for file in models.iterdir()}
    assert list(outputs.glob("events.out.tfevents.*"))
    assert set(torch.load(models / "last.pt", weights_only=True)) == {
        "model",
        "optimizer",
        "lr_scheduler",
        "best",
        "trainer",
    }

    run_bundle("evaluating", "train", "evaluate")
    with open(outputs / "val_mean_dice_raw.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2  # fold 0 of six cases
    assert all(0 <= float(row["class1"]) <= 1 for row in rows)

    run_bundle("run", "inference")
    image = nib.load(dataset / "imagesTs" / "box_9.nii.gz")
    prediction = nib.load(outputs / "box_9.nii.gz")
    assert prediction.shape == image.shape
    np.testing.assert_allclose(prediction.affine, image.affine, atol=1e-5)
    assert set(np.unique(prediction.dataobj)) <= {0, 1, 2}

    options = (
        "--kernel_size",
        "5",
        "--upkern_checkpoint",
        str(models / "model.pt"),
        "--ckpt_dir",
        str(tmp_path / "k5"),
    )
    log = run_bundle("training", "train", options=(*SHORT, *options)).stdout
    assert re.search(r"UpKern: \d+ tensors copied, 26 kernels interpolated", log)
    assert describe(read_state_dict(tmp_path / "k5" / "model.pt")).encoder_kernel_size == 5


def test_a_plan_is_an_overlay_for_training_evaluation_and_inference(run_bundle, dataset, tmp_path):
    task = tmp_path / "task.json"
    content = json.loads((dataset / "dataset.json").read_text())
    content["modality"] = {"0": "CT"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    plan(dataset, task, processes=1, progress=False, report=False)
    planned = json.loads(task.read_text())
    assert planned["normalization"] == ["CT"] and planned["patch_size"] == [48, 48, 48]
    run_bundle("training", "train", options=SHORT, overlay=task)
    run_bundle("evaluating", "train", "evaluate", overlay=task)
    run_bundle("inferring", "inference", overlay=task)
    assert (run_bundle.bundle / "eval" / "box_9.nii.gz").is_file()
    planned["splits"][0]["val"] = ["box_404"]
    task.write_text(json.dumps(planned))
    result = run_bundle("training", "train", options=SHORT, overlay=task, check=False)
    assert "box_404" in result.stderr  # so the plan's folds are the ones used


def test_channel_files_are_segmented_into_one_file_a_case(run_bundle, tmp_path):
    make_nnunet(tmp_path / "nnunet", 2, cases=2)
    network = create_mednext("S", 3, in_channels=2, out_channels=3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), run_bundle.bundle / "models" / "model.pt")
    folder = tmp_path / "nnunet" / "imagesTr"
    options = ("--in_channels", "2", "--input", str(folder), "--mirror", "False")
    run_bundle("inferring", "inference", options=options)
    predictions = sorted((run_bundle.bundle / "eval").glob("*.nii.gz"))
    assert [file.name for file in predictions] == ["case_00.nii.gz", "case_01.nii.gz"]
    original = nib.load(folder / "case_00_0000.nii.gz")
    assert nib.load(predictions[0]).shape == original.shape
    np.testing.assert_allclose(nib.load(predictions[0]).affine, original.affine, atol=1e-5)
    (folder / "case_01_0001.nii.gz").unlink()
    result = run_bundle("inferring", "inference", options=options, check=False)
    assert "case_01: has no file case_01_0001; in_channels is 2" in result.stderr


def test_a_resumed_run_continues_epochs_schedule_and_best_value(run_bundle):
    models = run_bundle.bundle / "models"
    run_bundle("run", "train", options=("--epochs", "3", "--iterations_per_epoch", "2", "--val_interval", "1"))
    before = torch.load(models / "last.pt", weights_only=True)
    message = run_bundle("run", "train", options=("--epochs", "3", "--resume", "True"), check=False).stderr
    assert "3 epochs behind it and epochs is 3" in message
    options = ("--epochs", "4", "--iterations_per_epoch", "2", "--val_interval", "9", "--resume", "True")
    log = run_bundle("run", "train", options=options).stdout
    after = torch.load(models / "last.pt", weights_only=True)
    assert "after epoch 3" in log
    assert after["trainer"]["iteration"] == 8
    assert after["lr_scheduler"]["last_epoch"] == before["lr_scheduler"]["last_epoch"] + 1
    assert after["optimizer"]["state"][0]["step"] == before["optimizer"]["state"][0]["step"] + 2
    assert after["best"] == before["best"]


def test_a_killed_run_leaves_a_whole_last_checkpoint(run_bundle, dataset, tmp_path):
    last = run_bundle.bundle / "models" / "last.pt"
    command = [
        sys.executable, "-m", "monai.bundle", "run", "training", "--config_file",
        str(run_bundle.bundle / "configs" / "train.json"), "--bundle_root", str(run_bundle.bundle), "--dataset_dir",
        str(dataset), "--out_channels", "3", "--patch_size", "[32,32,32]", "--network_def::base_channels", "2",
        "--num_workers", "0", "--iterations_per_epoch", "1", "--batch_size", "1", "--val_interval", "1000",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 120
        while not last.is_file() and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(1.5)  # into some later epoch, writing or not
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert torch.load(last, weights_only=True)["trainer"]["iteration"] >= 1


def test_several_processes_train_and_validate_together(run_bundle, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "-m")
    run_bundle("training", "train", "multi_gpu_train", options=SHORT, launcher=launcher)
    models = run_bundle.bundle / "models"
    assert {"model.pt", "model_best.pt", "last.pt"} <= {file.name for file in models.iterdir()}
    assert not [name for name in read_state_dict(models / "model.pt") if name.startswith("module.")]


@pytest.mark.slow
def test_training_learns_to_segment(run_bundle):
    options = (
        "--epochs",
        "3",
        "--iterations_per_epoch",
        "60",
        "--val_interval",
        "3",
        "--network_def::base_channels",
        "8",
    )
    log = run_bundle("training", "train", options=options).stdout
    assert float(re.findall(r"val_mean_dice: ([0-9.]+)", log)[-1]) > 0.8
