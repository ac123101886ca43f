"""Data lists, folds and the checks that find a data set's problems before the first training step.

This module's functions are what bundle configs call; none of them loads a volume but ``check_cases``.
"""

from .cache import cache_folder, hash_case
from .checks import check_cases, check_folder
from .datalist import inference_cases, training_cases
from .dataset import Dataset, DatasetError, read_dataset
from .folds import make_folds, read_groups, read_splits, select_fold
from .writer import AtomicNibabelWriter, NameByCased

__all__ = [
    "AtomicNibabelWriter",
    "Dataset",
    "DatasetError",
    "NameByCased",
    "cache_folder",
    "check_cases",
    "check_folder",
    "hash_case",
    "inference_cases",
    "make_folds",
    "read_dataset",
    "read_groups",
    "read_splits",
    "select_fold",
    "training_cases",
]
