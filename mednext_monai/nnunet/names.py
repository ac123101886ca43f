"""The names of the trainers and what each trains: the published variants, kernel sizes and learning rates.

Source: the 19 trainers of MIC-DKFZ/MedNeXt, whose names here begin with ``nnUNetTrainerMedNeXt_`` instead of
``nnUNetTrainerV2_MedNeXt_``. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PREFIX", "TRAINERS", "TrainerSettings"]

PREFIX = "nnUNetTrainerMedNeXt"


class TrainerSettings(NamedTuple):
    """What one trainer trains."""

    variant: str
    kernel_size: int = 3
    learning_rate: float = 1e-3  # of AdamW


def _published() -> dict[str, TrainerSettings]:
    trainers = {f"{variant}_kernel{size}": TrainerSettings(variant, size) for size in (3, 5) for variant in "SBML"}
    for suffix, rate, variants in (("5e_4", 5e-4, "BML"), ("25e_5", 2.5e-4, "SBML"), ("1e_4", 1e-4, "SBML")):
        trainers |= {f"{variant}_kernel5_lr_{suffix}": TrainerSettings(variant, 5, rate) for variant in variants}
    return {f"{PREFIX}_{name}": settings for name, settings in trainers.items()}


TRAINERS = _published()
