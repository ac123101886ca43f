"""Ignite event handlers that MONAI and ignite lack, following MONAI's handler contract (``attach``, ``__call__``).

One file for each handler, together with the functions that configure it.
"""

from .best_checkpoint import BestCheckpoint, best_metric
from .gradient_clipping import GradientClipping
from .learning_rate import LearningRate
from .mean_loss import MeanLoss
from .metrics_report import MetricsReport
from .moving_average import MovingAverage
from .nonfinite_loss import NonFiniteLoss
from .patch_validation import PatchValidation
from .random_states import RandomStates, set_seed
from .tensorboard_overlay import TensorBoardOverlay
from .training_checkpoint import TrainingCheckpoint, check_start
from .upkern_initializer import UpKernInitializer
from .use import use
from .weights_loader import SharedCheckpointLoader, WeightsLoader

__all__ = [
    "BestCheckpoint",
    "GradientClipping",
    "LearningRate",
    "MeanLoss",
    "MetricsReport",
    "MovingAverage",
    "NonFiniteLoss",
    "PatchValidation",
    "RandomStates",
    "SharedCheckpointLoader",
    "TensorBoardOverlay",
    "TrainingCheckpoint",
    "UpKernInitializer",
    "WeightsLoader",
    "best_metric",
    "check_start",
    "set_seed",
    "use",
]
