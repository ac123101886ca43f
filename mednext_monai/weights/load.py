"""Reading the weights of a checkpoint in the axis order of this package, and loading them into a network."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from .conversion import reverse_spatial_axes
from .description import compare_shapes, summarize
from .nnunet import is_nnunet, nnunet_plans, to_file_axes
from .state_dict import find_state_dict, is_original, plain_names, read_checkpoint, unwrap_parallel

__all__ = ["load_weights", "read_weights"]

logger = logging.getLogger(__name__)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a network, with the axes of its kernels in the order of this package, (x, y, z).

    The checkpoint may have any layout that :py:func:`read_state_dict` reads. Kernels of the authors' code are reversed,
    those of nnU-Net v2 reordered as its plans say, as by :py:func:`convert`; the log says so.

    Raises:
        FileNotFoundError, ValueError: as :py:func:`read_state_dict`; ``ValueError`` also if the plans in a checkpoint
            of nnU-Net v2 are invalid.
    """
    checkpoint = read_checkpoint(path)
    stored = find_state_dict(checkpoint, path)
    found = plain_names(stored)
    if is_nnunet(checkpoint):
        logger.info(f"{path} is a checkpoint of nnU-Net v2: its kernels are read with axes ordered (x, y, z)")
        return to_file_axes(found, nnunet_plans(checkpoint, path))
    if is_original(stored):
        logger.warning(
            f"{path} is a checkpoint of the authors' code, trained on arrays ordered (z, y, x): its kernels are loaded "
            "with reversed spatial axes. To keep their order, convert it with `mednext convert --reverse_axes false`."
        )
        return reverse_spatial_axes(found)
    return found


def load_weights(path: str | Path, network: torch.nn.Module) -> str:
    """
    Load the weights of a checkpoint into a network. All tensor names and shapes must match.

    The checkpoint is read by :py:func:`read_weights`. One of MONAI's own ``MedNeXt`` has other tensor names and must be
    converted first. A network that does not match remains unchanged.

    Args:
        path: the checkpoint.
        network: the network to change, wrapped by DataParallel or DistributedDataParallel or not.

    Returns:
        The description of the weights as text, such as "MedNeXt-S, kernel 3, 3D, 1 input channel, ...".

    Raises:
        FileNotFoundError: if there is no such file, listing the checkpoints beside it.
        ValueError: if the file cannot be read, or if its tensors do not match the network, describing both.
    """
    network = unwrap_parallel(network)
    found, expected = read_weights(path), network.state_dict()
    differences = compare_shapes(found, expected, found="in the checkpoint", wanted="in the network")
    if differences:
        raise ValueError(
            f"{path} does not match the network.\n  checkpoint: {summarize(found)}\n  network: {summarize(expected)}\n"
            f"{differences}"
        )
    network.load_state_dict(found)
    return summarize(found)
