"""Loading a checkpoint into a network, which remains unchanged if they do not match."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from .conversion import reverse_spatial_axes
from .description import compare_shapes, summarize
from .state_dict import find_state_dict, is_original, plain_names, read_checkpoint, unwrap_parallel

__all__ = ["load_weights"]

logger = logging.getLogger(__name__)


def load_weights(path: str | Path, network: torch.nn.Module) -> str:
    """
    Load the weights of a checkpoint into a network. All tensor names and shapes must match.

    The checkpoint may have any layout that :py:func:`read_state_dict` reads. A checkpoint of the authors' code is
    loaded as :py:func:`convert` would write it, with the spatial axes of its kernels reversed. One of MONAI's own
    ``MedNeXt`` has other tensor names and must be converted first.

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
    stored = find_state_dict(read_checkpoint(path), path)
    found, expected = plain_names(stored), network.state_dict()
    differences = compare_shapes(found, expected, found="in the checkpoint", wanted="in the network")
    if differences:
        raise ValueError(
            f"{path} does not match the network.\n  checkpoint: {summarize(found)}\n  network: {summarize(expected)}\n"
            f"{differences}"
        )
    if is_original(stored):
        logger.warning(
            f"{path} is a checkpoint of the authors' code, trained on arrays ordered (z, y, x): its kernels are loaded "
            "with reversed spatial axes. To keep their order, convert it with `mednext convert --reverse_axes false`."
        )
        found = reverse_spatial_axes(found)
    network.load_state_dict(found)
    return summarize(found)
