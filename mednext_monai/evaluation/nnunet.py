"""The ``summary.json`` of nnU-Net v1, for programs that read it.

Source: ``evaluation/evaluator.py`` and ``metrics.py`` of the authors' code (MIC-DKFZ/MedNeXt), without HD95, which is
off there too. As there, a metric without a value is the number ``NaN``, which Python reads and strict JSON forbids.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically
from .folder import Evaluation
from .metrics import ClassScores

__all__ = ["AUTHOR", "SUMMARY", "write_nnunet_summary"]

AUTHOR = "mednext-monai"
SUMMARY = "summary.json"


def write_nnunet_summary(evaluation: Evaluation, output_dir: str | PathLike, task: str = "") -> Path:
    """
    Write ``summary.json``, atomically.

    The keys of the classes are their values; those of regions their names. The background is left out, as in the
    original's ``evaluate_folder`` with the labels of the foreground. As there, a case whose prediction is in no file
    has no key ``test``; its key ``reference`` tells which it is.

    Args:
        evaluation: the evaluation.
        output_dir: folder of the file.
        task: name of the task in the file. Defaults to none.

    Returns:
        the path of the file.
    """
    keys = {name: str(value) for name, value in (evaluation.labels.classes or {}).items()}
    cases: dict[str, dict[str, Any]] = {case: {} for case in evaluation.files}
    for row in evaluation.scores:
        cases[row.case][keys.get(row.name, row.name)] = _metrics(row)
    labels = list(next(iter(cases.values())))
    mean = {label: _mean([case[label] for case in cases.values()]) for label in labels}
    for case, pair in evaluation.files.items():
        cases[case] |= {key: file for key, file in (("test", pair.prediction), ("reference", pair.reference)) if file}
    content: dict[str, Any] = {
        "name": "",
        "description": "",
        "timestamp": str(datetime.datetime.today()),
        "task": task,
        "author": AUTHOR,
        "results": {"all": list(cases.values()), "mean": mean},
    }
    content["id"] = hashlib.md5(json.dumps(content).encode(), usedforsecurity=False).hexdigest()[:12]
    path = Path(output_dir, SUMMARY)
    write_atomically(path, json.dumps(content, indent=4, sort_keys=True).encode())
    return path


def _metrics(row: ClassScores) -> dict[str, float]:
    tp, fp, fn, tn = row.true_positives, row.false_positives, row.false_negatives, row.true_negatives
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    specificity, omission = _ratio(tn, tn + fp), _ratio(fn, fn + tn)
    return {
        "Accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "Dice": row.dice,
        "False Discovery Rate": 1 - precision,
        "False Negative Rate": 1 - recall,
        "False Omission Rate": omission,
        "False Positive Rate": 1 - specificity,
        "Jaccard": _ratio(tp, tp + fp + fn),
        "Negative Predictive Value": 1 - omission,
        "Precision": precision,
        "Recall": recall,
        "Total Positives Reference": tp + fn,
        "Total Positives Test": tp + fp,
        "True Negative Rate": specificity,
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(metrics: list[Mapping[str, float]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no case has a value
        return {key: float(np.nanmean([case[key] for case in metrics])) for key in metrics[0]}
