"""Comparing segmentations with reference labels: metrics, their tables, and the post-processing chosen from them.

What belongs here needs label maps only, no network and no images.

- ``labels``: what is evaluated: classes, regions (unions of classes) and the label that is ignored.
- ``metrics``: the metrics of one case.
- ``cases``: pairs of files in two folders, and work on many cases in several processes.
- ``folder``: evaluates a folder, ``mednext evaluate-folder``.
- ``summary``: mean, sd, median and worst cases.
- ``output``: ``metrics.csv`` and ``metrics.json``, for folders and for the bundles' ``evaluating``.
- ``parts``: the rows of a part of the cases, evaluated by a run of its own.
- ``nnunet``: the ``summary.json`` of nnU-Net v1.
- ``postprocessing``: removal of all but the largest component, where it raises the Dice.

Importing this package imports neither torch nor MONAI, so that worker processes start quickly.
"""

from .folder import Evaluation, evaluate_folder, folder_settings
from .labels import Labels, read_labels, task_labels
from .metrics import ClassScores, score_case
from .nnunet import write_nnunet_summary
from .output import check_tables, finish_evaluation, print_missing, write_evaluation, write_metrics
from .parts import Part, evaluation_part, folder_part
from .postprocessing import (
    Postprocessing,
    apply_postprocessing,
    apply_to_folder,
    check_decision,
    find_postprocessing,
    read_postprocessing,
)
from .summary import summarize, text_table

__all__ = [
    "ClassScores",
    "Evaluation",
    "Labels",
    "Part",
    "Postprocessing",
    "apply_postprocessing",
    "apply_to_folder",
    "check_decision",
    "check_tables",
    "evaluate_folder",
    "evaluation_part",
    "find_postprocessing",
    "finish_evaluation",
    "folder_part",
    "folder_settings",
    "print_missing",
    "read_labels",
    "read_postprocessing",
    "score_case",
    "summarize",
    "task_labels",
    "text_table",
    "write_evaluation",
    "write_metrics",
    "write_nnunet_summary",
]
