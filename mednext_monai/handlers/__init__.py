"""Ignite event handlers that MONAI and ignite lack, following MONAI's handler contract (``attach``, ``__call__``)."""

from .checkpoints import BestCheckpoint, RandomStates, TrainingCheckpoint, save_atomically
from .gradient_clipping import GradientClipping
from .mean_loss import MeanLoss
from .upkern_initializer import UpKernInitializer

__all__ = [
    "BestCheckpoint",
    "GradientClipping",
    "MeanLoss",
    "RandomStates",
    "TrainingCheckpoint",
    "UpKernInitializer",
    "save_atomically",
]
