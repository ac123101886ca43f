"""The workflows of a bundle on a GPU, as a user runs them: training in mixed precision to inference."""

from __future__ import annotations

import csv
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.trainer import Scaler, make_trainer

from mednext_monai.handlers import GradientClipping, NonFiniteLoss
from mednext_monai.handlers.random_states import RandomStates
from mednext_monai.weights import describe, read_state_dict

LENGTH = ("--iterations_per_epoch", "3", "--val_interval", "1")


def loaded(path) -> dict:
    """Read a checkpoint without a map of locations: so that it opens without a GPU, too."""
    return torch.load(path, weights_only=True)


def devices_of(item) -> set[str]:
    if isinstance(item, torch.Tensor):
        return {item.device.type}
    values = item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
    return set().union(*map(devices_of, values))


def labels_of(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_train_evaluate_segment_and_start_a_larger_kernel(run_bundle, device, tmp_path):
    on, models, outputs = ("--device", str(device)), run_bundle.bundle / "models", run_bundle.bundle / "eval"
    log = run_bundle("training", "train", options=("--epochs", "2", *LENGTH, *on)).stdout
    assert "val_mean_dice" in log and "val_pooled_dice" in log and "gradient_norm" in log
    losses = [float(value) for value in re.findall(r"mean_train_loss: (\S+)", log)]
    assert losses and np.isfinite(losses).all()
    last = loaded(models / "last.pt")
    assert devices_of(last) == devices_of(loaded(models / "model.pt")) == {"cpu"}
    assert ("scaler" in last) == ("cuda" in last["random"]) == (device.type == "cuda")

    run_bundle("evaluating", "train", "evaluate", options=("--save_predictions", "true", *on))
    with open(outputs / "metrics.csv") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2
    for mirror in ("true", "false"):
        options = ("--mirror", mirror, "--output_dir", str(tmp_path / mirror), *on)
        run_bundle("inferring", "inference", options=options)
        assert set(np.unique(labels_of(tmp_path / mirror / "box_9.nii.gz"))) <= {0, 1, 2}

    options = (
        "--kernel_size",
        "5",
        "--upkern_checkpoint",
        str(models / "model.pt"),
        "--ckpt_dir",
        str(tmp_path / "k5"),
    )
    log = run_bundle("training", "train", options=("--epochs", "1", *LENGTH, *options, *on)).stdout
    assert re.search(r"UpKern: \d+ tensors copied, 26 kernels interpolated", log)
    assert describe(read_state_dict(tmp_path / "k5" / "model.pt")).encoder_kernel_size == 5


def test_a_killed_training_resumes_to_the_same_weights_as_one_that_was_not(run_bundle, device, tmp_path):
    def train(name: str, *more: str, **kwargs) -> None:
        options = ("--epochs", "4", *LENGTH, "--ckpt_dir", str(tmp_path / name), "--device", str(device))
        run_bundle("training", "train", options=(*options, *more), **kwargs)

    train("whole")
    train("killed", kill_when=tmp_path / "killed" / "last.pt")
    before = loaded(tmp_path / "killed" / "last.pt")
    assert before["trainer"]["iteration"] < 12 and not (tmp_path / "killed" / "model.pt").exists()
    train("killed", "--resume", "true")
    whole, after = (loaded(tmp_path / name / "last.pt") for name in ("whole", "killed"))
    for generator in ("torch", "cuda") if device.type == "cuda" else ("torch",):
        assert torch.equal(after["random"][generator], whole["random"][generator]), generator
    assert after["sampler"] == whole["sampler"] and after.get("scaler") == whole.get("scaler")
    for name, tensor in whole["model"].items():
        if isinstance(tensor, torch.Tensor):  # to the last bit on a CPU; on a GPU an atomic sum may differ in it
            torch.testing.assert_close(after["model"][name], tensor, rtol=0, atol=0 if device.type == "cpu" else 1e-4)


def test_a_gpu_segments_as_a_cpu_does(run_bundle, dataset, device, tmp_path):
    run_bundle("training", "train", options=("--epochs", "1", *LENGTH, "--device", str(device)))
    found = {}
    for name, amp in (("cpu", "false"), (str(device), "false"), (str(device), "true")):
        folder = tmp_path / f"{name}_{amp}"
        options = ("--device", name, "--amp", amp, "--output_dir", str(folder), "--input", str(dataset / "imagesTr"))
        run_bundle("inferring", "inference", options=(*options, "--mirror", "false"))
        found[folder.name] = np.stack([labels_of(folder / f"box_{i}.nii.gz") for i in range(6)])
    on_cpu = found.pop("cpu_false")
    assert len(np.unique(on_cpu)) > 1
    for name, labels in found.items():  # float32 with TF32, and float16
        assert (labels == on_cpu).mean() > 0.95, name


def test_the_states_of_the_random_generators_come_back(device):
    states = RandomStates(device)
    saved = states.state_dict()
    first = torch.rand(3, device=device), torch.rand(3), np.random.rand()
    states.load_state_dict(saved)
    second = torch.rand(3, device=device), torch.rand(3), np.random.rand()
    assert all(np.array_equal(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu()) for a, b in zip(first, second))


def test_steps_that_overflow_are_skipped_and_the_scale_falls(gpu, tmp_path):
    trainer, network, _ = make_trainer(
        epochs=1,
        handlers=[
            lambda network, optimizer: Scaler(2.0**40, "cuda"),
            lambda network, optimizer: NonFiniteLoss(f"{tmp_path}/nonfinite.pt", {}),
            lambda network, optimizer: GradientClipping(network.parameters(), optimizer),
        ],
        device=gpu,
        amp=True,
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainer.run()
    assert trainer.scaler.get_scale() == 2.0**36  # halved at each of the four steps, none of which was taken
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert "gradient_norm" not in trainer.state.metrics and not (tmp_path / "nonfinite.pt").exists()


def test_a_loss_that_is_not_finite_ends_a_training_before_the_step(device, tmp_path):
    trainer, network, _ = make_trainer(
        handlers=[lambda network, optimizer: NonFiniteLoss(f"{tmp_path}/nonfinite.pt", {"model": network})],
        scale=float("inf"),
        device=device,
    )
    before = network.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="epoch 1, iteration 1 of 4"):
        trainer.run()
    assert torch.equal(network.weight, before)
    assert devices_of(loaded(tmp_path / "nonfinite.pt")) == {"cpu"}
