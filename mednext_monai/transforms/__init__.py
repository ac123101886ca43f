"""MONAI transforms: preprocessing and its way back, and the sampling and augmentation of training patches.

- ``preprocess``: ``Preprocessd``, its inverse that ends in classes, and saving them; for inference and evaluation.
- ``patch``: drawing a patch of a stored case.
- ``spatial``: rotation and scaling in one interpolation.
- ``intensity``: smoothing, lower resolution and gamma per channel.
- ``augmentation``: everything that a training patch goes through, in the original's order.
- ``splines``: the interpolation itself.
"""

from .augmentation import CleanOutsided, patch_transforms, training_augmentation
from .intensity import RandChannelGammad, RandChannelLowResolutiond, RandChannelSmoothd
from .patch import RandPatchd
from .preprocess import LoadLabeld, Preprocessd, RestoreClassesd, SaveImageOnSourceGridd
from .spatial import RandRotateScaled

__all__ = [
    "CleanOutsided",
    "LoadLabeld",
    "Preprocessd",
    "RandChannelGammad",
    "RandChannelLowResolutiond",
    "RandChannelSmoothd",
    "RandPatchd",
    "RandRotateScaled",
    "RestoreClassesd",
    "SaveImageOnSourceGridd",
    "patch_transforms",
    "training_augmentation",
]
