"""MONAI transforms: preprocessing and its inverse, and sampling and augmentation of training patches.

- ``preprocess``: ``Preprocessd``, the way back to a class map, and saving it; for inference and evaluation.
- ``others``: preprocessing for other networks of an ensemble.
- ``dicom``: saving a class map as DICOM-SEG.
- ``components``: post-processing of a class map.
- ``probabilities``: saving class probabilities.
- ``regions``: saving unions of classes as masks.
- ``patch``: drawing a patch from a stored case.
- ``spatial``: rotation and scaling in one interpolation, and mirroring.
- ``intensity``: noise; smoothing, lower resolution and gamma per channel.
- ``augmentation``: the complete training augmentation, in the original's order.
- ``ignore``: voxels without annotation in a validation on whole volumes.
- ``splines``: the interpolation.
"""

from .augmentation import CleanOutsided, patch_transforms, training_augmentation
from .components import KeepComponentsd
from .dicom import SaveDicomSegd
from .ignore import ExcludeIgnoredd
from .intensity import RandChannelGammad, RandChannelLowResolutiond, RandChannelSmoothd, RandNoised
from .others import PreprocessOthersd
from .patch import RandPatchd
from .preprocess import LoadLabeld, Preprocessd, RestoreClassesd, SaveImageOnSourceGridd
from .probabilities import SaveProbabilitiesd
from .regions import SaveRegionsd, region_folders
from .spatial import RandMirrord, RandRotateScaled

__all__ = [
    "CleanOutsided",
    "KeepComponentsd",
    "ExcludeIgnoredd",
    "LoadLabeld",
    "PreprocessOthersd",
    "Preprocessd",
    "RandChannelGammad",
    "RandChannelLowResolutiond",
    "RandChannelSmoothd",
    "RandMirrord",
    "RandNoised",
    "RandPatchd",
    "RandRotateScaled",
    "RestoreClassesd",
    "SaveDicomSegd",
    "SaveImageOnSourceGridd",
    "SaveProbabilitiesd",
    "SaveRegionsd",
    "patch_transforms",
    "region_folders",
    "training_augmentation",
]
