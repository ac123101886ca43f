"""The layouts in which training code stores the tensors of a network."""

from __future__ import annotations

from collections import OrderedDict

import torch

__all__ = ["LAYOUTS"]


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
