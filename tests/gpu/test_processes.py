"""Several processes: over NCCL where there are two GPUs, over gloo on a CPU."""

from __future__ import annotations

import pytest
import torch
from helpers.processes import free_port

from mednext_monai.weights import read_state_dict

SHORT = ("--epochs", "2", "--iterations_per_epoch", "3", "--val_interval", "1", "--batch_dice", "false")


@pytest.fixture
def two(device):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, there is one")
    return device


def test_two_processes_train_evaluate_and_segment_as_one_does(run_bundle, dataset, two, tmp_path, monkeypatch):
    if two.type == "cpu":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m")
    precise = ("--amp", "false")  # each process has a scaler and a rounding of its own
    run_bundle("training", "train", "multi_gpu_train", options=(*SHORT, *precise), launcher=launcher)
    models = run_bundle.bundle / "models"
    options = (*SHORT, *precise, "--ckpt_dir", str(tmp_path / "one"), "--device", str(two))
    run_bundle("training", "train", options=options)
    several, one = (read_state_dict(folder / "model.pt") for folder in (models, tmp_path / "one"))
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=0, atol=1e-5 if two.type == "cpu" else 1e-3)
    options = ("--mirror", "false")
    run_bundle("evaluating", "train", "multi_gpu_train", "evaluate", options=options, launcher=launcher)
    assert (run_bundle.bundle / "eval" / "metrics.csv").is_file()
    options += ("--input", str(dataset / "imagesTr"))
    run_bundle("inferring", "inference", "multi_gpu_inference", options=options, launcher=launcher)
    assert len(list((run_bundle.bundle / "eval").glob("box_*.nii.gz"))) == 6


def test_two_processes_train_in_mixed_precision(run_bundle, two, gpu):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m")
    run_bundle("training", "train", "multi_gpu_train", options=SHORT, launcher=launcher)
    last = torch.load(run_bundle.bundle / "models" / "last.pt", weights_only=True)
    assert last["scaler"]["scale"] > 0 and all(
        torch.isfinite(t).all() for t in read_state_dict(run_bundle.bundle / "models" / "model.pt").values()
    )


def test_another_gpu_than_the_first_trains(run_bundle, two, gpu):
    run_bundle("training", "train", options=(*SHORT, "--device", "cuda:1"))
    assert "cuda" in torch.load(run_bundle.bundle / "models" / "last.pt", weights_only=True)["random"]
