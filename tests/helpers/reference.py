"""The deterministic weights and inputs under which the figures in ``figures/`` were recorded.

``variants.json``, ``options.json`` and ``upkern_s_k3_to_k5.json`` hold what the authors' code (MIC-DKFZ/MedNeXt,
commit 0b78ed8) computes in float32 on a CPU, in training mode, from these weights and this input.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).with_name("figures")


def load_reference(name: str) -> dict:
    """Return the recorded figures of one file in ``figures/``."""
    return json.loads((DATA / f"{name}.json").read_text())


def fill_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Fill every tensor of the network from its name: a sine, scaled by fan-in, with a phase from the name's CRC."""
    state = {}
    for name, tensor in network.state_dict().items():
        phase = (zlib.crc32(name.encode()) % 10007) / 10007 * 2 * math.pi
        scale = tensor[0].numel() ** -0.5 if tensor.ndim >= 2 else 0.1
        values = scale * np.sin(1.7 * np.arange(tensor.numel(), dtype=np.float64) + phase)
        if name.endswith("norm.weight"):
            values += 1
        state[name] = torch.from_numpy(values.reshape(tensor.shape)).float()
    network.load_state_dict(state)
    return network


def make_input(shape: list[int]) -> torch.Tensor:
    """The recorded input: the sum of a fast and a slow wave over the flattened shape."""
    index = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy((np.sin(0.37 * index) + np.cos(0.011 * index)).reshape(shape)).float()
