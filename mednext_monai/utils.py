"""Small functions that bundle configs call."""

from __future__ import annotations

import torch
from monai.utils import set_determinism

__all__ = ["outside_to_background", "set_seed"]


def outside_to_background(label: torch.Tensor) -> torch.Tensor:
    """Make the label -1, "outside the nonzero region" of the preprocessing, background, for loss and metrics."""
    return label.clamp(min=0).float()


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
