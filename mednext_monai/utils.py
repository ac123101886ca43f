"""Small functions that bundle configs call."""

from __future__ import annotations

import torch
from monai.utils import set_determinism

__all__ = ["is_nonzero", "set_seed"]


def is_nonzero(x: torch.Tensor) -> torch.Tensor:
    """Select the voxels that are not zero, for ``CropForegroundd``, whose default ``x > 0`` cuts into a CT."""
    return x != 0


def set_seed(seed: int | None, rank: int = 0) -> None:
    """
    Seed all random generators of this process, or, with ``None``, let cuDNN look for its fastest algorithms.

    Args:
        seed: a whole number for a run that can be repeated; ``None`` as published.
        rank: added to the seed, so that the processes of one run draw different patches.
    """
    if seed is None:
        torch.backends.cudnn.benchmark = True
    else:
        set_determinism(seed=seed + rank)
