"""Checkpoints: the layouts in which training code stores the tensors of a network, and released weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from mednext_monai.files import sha256
from mednext_monai.networks import create_mednext
from mednext_monai.weights.settings import attach_settings

__all__ = ["LAYOUTS", "TRAINED", "release_weights"]

TRAINED = {  # what a checkpoint of a training carries
    "in_channels": 1,
    "out_channels": 3,
    "spacing": [1.0, 1.0, 1.0],
    "orientation": None,
    "patch_size": [32, 32, 32],
    "normalization": None,
    "intensity": None,
    "regions": None,
    "ignore_label": None,
    "channel_names": ["MRI"],
    "labels": ["background", "outer", "inner"],
    "variant": "S",
    "kernel_size": 3,
    "fold": 0,
    "training_cases": [0, ""],
    "training_ids": [],
}


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# From the tensors to what is stored, by a name for the layout.
LAYOUTS = {
    "plain": lambda t: t,
    "ordered": OrderedDict,
    "model": lambda t: {"model": t, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
    "network": lambda t: {"network": t},
    "net": lambda t: {"net": t, "trainer": {"epoch": 3}},
    "state_dict": lambda t: {"state_dict": t, "epoch": 1000},
    "model_state_dict": lambda t: {"model_state_dict": t, "optimizer_state_dict": {}},
    "ema": lambda t: {"ema": t, "epoch": 1},
    "ema_state_dict": lambda t: {"ema_state_dict": t},
    "module": lambda t: {"module": t, "lr_scheduler": {"last_epoch": 1}},
    "model before ema": lambda t: {"ema": {name: tensor + 1 for name, tensor in t.items()}, "model": t},
    "network_weights": lambda t: {"network_weights": t, "optimizer_state": {}},
    "nested": lambda t: {"model": {"state_dict": t, "arch": "mednext"}},
    "parallel": lambda t: prefixed("module.", t),
    "parallel, under model": lambda t: {"model": prefixed("module.", t)},
    "compiled": lambda t: prefixed("_orig_mod.", t),
    "compiled and parallel": lambda t: prefixed("_orig_mod.module.", t),
    "parallel and compiled": lambda t: prefixed("module._orig_mod.", t),
    "Lightning, net": lambda t: {"state_dict": prefixed("net.", t), "pytorch-lightning_version": "2.5", "epoch": 1},
    "Lightning, model": lambda t: {"state_dict": prefixed("model.", t)},
    "Lightning, network": lambda t: {"state_dict": prefixed("network._orig_mod.", t)},
    "authors' code": lambda t: {"state_dict": {**t, "dummy_tensor": torch.ones(1)}, "optimizer_state_dict": None},
    "authors' code, alone": lambda t: {**t, "dummy_tensor": torch.ones(1)},
    "authors' code, parallel": lambda t: {"state_dict": prefixed("module.", {**t, "dummy_tensor": torch.ones(1)})},
    "authors' code, dummy without prefix": lambda t: {**prefixed("model.", t), "dummy_tensor": torch.ones(1)},
}


def release_weights(models: Path, base_channels: int = 4, **settings: Any) -> Path:
    """Write random weights of a narrow MedNeXt S for three classes as released ones, and return the file."""
    models.mkdir(parents=True, exist_ok=True)
    network = create_mednext("S", in_channels=1, out_channels=3, deep_supervision=True, base_channels=base_channels)
    stored = {name: tensor.half() for name, tensor in network.state_dict().items()}
    file = models / "model.pt"
    torch.save(attach_settings(stored, {**TRAINED, **settings}), file)
    record = {"sha256": sha256(file), "bytes": file.stat().st_size, "precision": "float16"}
    (models / "model.json").write_text(json.dumps(record))
    return file
