"""Data lists, folds and the checks that find a data set's problems before the first training step.

This module's functions are what bundle configs call; none of them loads a volume but ``check_cases``.
"""

from .cache import cache_folder, hash_case
from .checks import check_cases, check_folder
from .datalist import inference_cases, training_cases
from .folds import kfold_indices
from .writer import AtomicNibabelWriter

__all__ = [
    "AtomicNibabelWriter",
    "cache_folder",
    "check_cases",
    "check_folder",
    "hash_case",
    "inference_cases",
    "kfold_indices",
    "training_cases",
]
