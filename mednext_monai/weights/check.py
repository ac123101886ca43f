"""Seeing before a run that a checkpoint is the network's."""

from __future__ import annotations

from pathlib import Path

import torch

from .describe import compare_shapes, describe
from .state_dict import read_state_dict

__all__ = ["check_checkpoint"]


def check_checkpoint(path: str, network: torch.nn.Module) -> None:
    """
    Check that a checkpoint's tensors are those of the network, name by name and shape by shape.

    Args:
        path: the checkpoint, any file that :py:func:`read_state_dict` takes.
        network: the network that will be loaded from it.

    Raises:
        FileNotFoundError: when there is no such file, naming the checkpoints beside it.
        ValueError: when it is no whole checkpoint, or that of another network, saying what both are.
    """
    if not Path(path).is_file():
        others = sorted(str(file) for file in Path(path).parent.glob("*.pt"))
        raise FileNotFoundError(
            f"the checkpoint {path} does not exist; in its folder are {others or 'no checkpoints'}."
        )
    found, expected = read_state_dict(path), network.state_dict()
    differences = compare_shapes(found, expected, found="in the checkpoint", wanted="in the network")
    if differences:
        raise ValueError(
            f"{path} does not fit the network.\n  checkpoint: {describe(found)}\n  network: {describe(expected)}\n"
            f"{differences}"
        )
