"""MONAI transforms for training patches: which patch is drawn, and how it is augmented, as the paper's code does it.

The bundles train with these.

- ``sampling``: cases, batch slots, foreground, overhang; patches read from memory-mapped cases.
- ``spatial``: rotation and scaling in one interpolation.
- ``intensity``: smoothing, lower resolution and gamma per channel.
- ``augmentation``: everything in the original's order.
- ``splines``: the interpolation itself.
"""

from .augmentation import CleanOutsided, patch_transforms, training_augmentation
from .intensity import RandChannelGammad, RandChannelLowResolutiond, RandChannelSmoothd
from .sampling import BATCHES_PER_EPOCH, EpochSampler, PatchDataset, RandPatchd, is_forced_slot
from .spatial import RandRotateScaled

__all__ = [
    "BATCHES_PER_EPOCH",
    "CleanOutsided",
    "EpochSampler",
    "PatchDataset",
    "RandChannelGammad",
    "RandChannelLowResolutiond",
    "RandChannelSmoothd",
    "RandPatchd",
    "RandRotateScaled",
    "is_forced_slot",
    "patch_transforms",
    "training_augmentation",
]
