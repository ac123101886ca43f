"""Data sets on disk: their layout, folds, files, the checks before a run, prepared cases, and the sequence of patches.

- ``dataset``: the layouts that are read, and the lists of cases for training and inference.
- ``folds``: splitting cases into training and validation.
- ``io``: the only reader and writer of images.
- ``checks``: the only place that decides whether a file can be used.
- ``store``: every case preprocessed once, as memory-mapped arrays.
- ``patches``: which case fills which slot of a batch; imported by itself, since it needs torch and MONAI.

Importing this package imports neither torch nor MONAI, so that worker processes start quickly.
"""

from .checks import check_cases, check_folders
from .dataset import Dataset, DatasetError, inference_cases, read_dataset, training_cases
from .folds import make_folds, read_groups, read_splits, select_fold
from .io import read_image, read_label, write_segmentation
from .store import preprocess_dataset, preprocessed_cases

__all__ = [
    "Dataset",
    "DatasetError",
    "check_cases",
    "check_folders",
    "inference_cases",
    "make_folds",
    "preprocess_dataset",
    "preprocessed_cases",
    "read_dataset",
    "read_groups",
    "read_image",
    "read_label",
    "read_splits",
    "select_fold",
    "training_cases",
    "write_segmentation",
]
