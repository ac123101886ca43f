"""Bundles as a training and an evaluation leave them, without running either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from helpers.bundles import make_member
from helpers.datasets import make_decathlon
from helpers.events import write_scalars
from mednext_monai import bundles
from mednext_monai.weights import read_state_dict

__all__ = ["SETTINGS", "evaluated", "make_released", "make_trained_and_evaluated", "write_state", "write_tables"]

SETTINGS = {
    "training_ids": ["1", "2", "3"],
    "versions": {"mednext_monai": "0.1.0", "monai": "1.6.1", "torch": "2.13.0"},
}
SETTINGS["hardware"] = {"system": "Linux", "machine": "x86_64", "cores": 2, "device": "cpu"}
MEANS = {"outer": {"dice": 0.75, "surface_dice": 0.5, "hd95_mm": 3.0}, "inner": {"dice": 0.25, "surface_dice": None}}


def write_tables(folder: Path, checkpoint: Path, dataset: Path, dice: float = 0.5, mirror: bool = True) -> None:
    """The part of an evaluation's ``metrics.json`` that a release reads."""
    settings = {"checkpoint": str(checkpoint), "dataset_dir": str(dataset), "mirror": mirror}
    metrics = ("dice", "surface_dice", "hd95_mm")
    content = {
        "settings": {**settings, "surface_dice_tolerance": 1.0, "surface_dice_unit": "mm"},
        "cases": 2,
        "classes": {name: {key: {"mean": means.get(key)} for key in metrics} for name, means in MEANS.items()},
        "mean_over_classes": {"dice": dice, "surface_dice": 0.5, "hd95_mm": 3.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))


def write_state(bundle: Path) -> None:
    """The state of the training that wrote the bundle's weights."""
    group = {"lr": 1e-5, "initial_lr": 1e-3, "weight_decay": 3e-5, "params": [0]}
    state = {
        "model": read_state_dict(bundle / "models" / "model.pt"),
        "optimizer": {"state": {}, "param_groups": [group]},
        "trainer": {"iteration": 600, "epoch_length": 200, "max_epochs": 3},
        "run": {"seed": 5},
    }
    torch.save(state, bundle / "models" / "last.pt")


def make_trained_and_evaluated(folder: Path) -> Path:
    """Return a bundle with what a training and an evaluation leave, for the data set ``folder/data``."""
    data = make_decathlon(folder / "data", cases=3)
    description = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**description, "name": "Boxes", "licence": "CC0"}))
    bundle = make_member("mednext_s_k3", folder / "mine", **SETTINGS)
    write_state(bundle)
    write_tables(bundle / "eval", bundle / "models" / "model.pt", data)
    write_scalars(bundle / "eval", "mean_train_loss", {1: 0.75, 2: 0.5, 3: 0.25, 4: 9.0})  # the last one after resuming
    write_scalars(bundle / "eval", "val_mean_dice", {2: 0.375})
    (bundle / "configs" / "task.json").write_text("{}")
    for file in (bundle / "configs" / "train.json", bundle / "configs" / "inference.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "dataset_dir": "/home/somebody/data"}))
    return bundle


def evaluated(folder: Path, dice: float = 0.5) -> Callable[[Path, Path], None]:
    """Return what a release calls to evaluate a checkpoint."""
    return lambda checkpoint, output: write_tables(output, checkpoint, folder / "data", dice)


def make_released(folder: Path, name: str = "released") -> Path:
    """Return a released bundle, ``folder/name``."""
    text = folder / "license.txt"
    text.write_text("Boxes by nobody, CC0.\n")
    return bundles.release(make_trained_and_evaluated(folder), folder / name, True, text, evaluate=evaluated(folder))
