"""Data sets on disk: layouts, folds, image files, checks, preprocessed cases, and the sequence of training patches.

- ``dataset``: the supported layouts, and the lists of cases for training and inference.
- ``case_lists``: these lists, made when they are first used.
- ``label_names``: classes, regions and the ignore label in ``dataset.json``.
- ``folds``: splitting cases into training and validation.
- ``io``: the only reader and writer of images.
- ``dicom_files``, ``dicom``: finding series of DICOM images, and reading one.
- ``probabilities``: class probabilities on disk.
- ``segments``, ``dicom_seg``: what the classes are, and segmentations as DICOM-SEG.
- ``checks``: the only place that decides whether a file is valid.
- ``store``: preprocesses every case once and stores it as memory-mapped arrays.
- ``stored_cases``: what is stored for the cases of a training; ``stored_dataset``: as a data set, not imported here.
- ``prepare``: does so for a whole data set, or for a part of it, before a training.
- ``results``: which cases of a prediction are finished.
- ``patches``: which case fills which slot of a batch; not imported here, since it needs torch and MONAI.

Importing this package imports neither torch nor MONAI, so that worker processes start quickly.
"""

from .case_lists import CaseList, InferenceCases
from .checks import check_cases, check_dicom_seg, check_folders, check_outputs
from .dataset import (
    Dataset,
    DatasetError,
    cases_digest,
    class_names,
    fold_count,
    inference_cases,
    named_cases,
    read_dataset,
    training_cases,
)
from .folds import make_folds, read_groups, read_splits, select_fold
from .io import read_image, read_label, write_segmentation
from .prepare import prepare_cases
from .probabilities import ProbabilityStore
from .results import Output, Results, outputs_in
from .store import CasesError, preprocess_dataset, preprocessed_cases
from .stored_cases import StoredCases

__all__ = [
    "CaseList",
    "CasesError",
    "Dataset",
    "DatasetError",
    "InferenceCases",
    "Output",
    "ProbabilityStore",
    "Results",
    "StoredCases",
    "cases_digest",
    "check_cases",
    "check_dicom_seg",
    "check_folders",
    "check_outputs",
    "class_names",
    "fold_count",
    "inference_cases",
    "make_folds",
    "named_cases",
    "outputs_in",
    "prepare_cases",
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
