"""Ignite event handlers that MONAI and ignite lack, following MONAI's handler contract (``attach``, ``__call__``)."""

from .checkpoints import BestCheckpoint, RandomStates, TrainingCheckpoint, best_metric, save_atomically
from .gradient_clipping import GradientClipping
from .mean_loss import MeanLoss
from .nonfinite_loss import NonFiniteLoss
from .patch_validation import MovingAverage, PatchValidation
from .pooled_dice import PooledDice
from .tensorboard_overlay import TensorBoardOverlay
from .upkern_initializer import UpKernInitializer

__all__ = [
    "BestCheckpoint",
    "GradientClipping",
    "MeanLoss",
    "MovingAverage",
    "NonFiniteLoss",
    "PatchValidation",
    "PooledDice",
    "RandomStates",
    "TensorBoardOverlay",
    "TrainingCheckpoint",
    "UpKernInitializer",
    "best_metric",
    "save_atomically",
]
