"""Data lists, folds and the checks that find a data set's problems before the first training step.

This module's functions are what bundle configs call; none of them loads a volume but ``check_cases`` and
``preprocessed_cases``.
"""

from .checks import check_cases, check_folders
from .datalist import inference_cases, training_cases
from .dataset import Dataset, DatasetError, read_dataset
from .folds import make_folds, read_groups, read_splits, select_fold
from .preprocessed import preprocessed_cases
from .writer import AtomicNibabelWriter, NameByCased

__all__ = [
    "AtomicNibabelWriter",
    "Dataset",
    "DatasetError",
    "NameByCased",
    "check_cases",
    "check_folders",
    "inference_cases",
    "make_folds",
    "preprocessed_cases",
    "read_dataset",
    "read_groups",
    "read_splits",
    "select_fold",
    "training_cases",
]
