"""Evaluation of a folder of segmentations."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import value_counts
from ..parallel import map_cases
from .cases import FileStates, Pair, naming_files, pair_cases, read_pair
from .labels import Labels
from .metrics import ClassScores, empty_scores, score_case

if TYPE_CHECKING:
    from .parts import Part

__all__ = ["Evaluation", "complete_rows", "evaluate_folder", "folder_settings", "refuse_nothing", "surface_settings"]


@dataclass(frozen=True)
class Evaluation:
    """
    The result of :py:func:`evaluate_folder`, and of the bundles' ``evaluating``.

    Attributes:
        scores: the metrics of every case and class, sorted by case.
        labels: what was evaluated; the classes are those found if none were given.
        files: the files of each evaluated case, by case id; the prediction is empty if it was not saved.
        problems: a message for each case that could not be evaluated, by case id.
        settings: what was evaluated, such as the folders, and the options that determine the values.
        voxels: number of voxels that count, by case id; needed for a part of an evaluation without given classes.
    """

    scores: list[ClassScores]
    labels: Labels
    files: Mapping[str, Pair]
    problems: Mapping[str, str]
    settings: Mapping[str, Any]
    voxels: Mapping[str, int] = field(default_factory=dict)


def evaluate_folder(
    prediction_dir: str | PathLike,
    label_dir: str | PathLike | Mapping[str, str],
    labels: Labels | None = None,
    tolerance: float = 1.0,
    tolerance_in_voxels: bool = False,
    allow_missing: bool = False,
    processes: int | None = None,
    part: Part | None = None,
) -> Evaluation:
    """
    Compare all segmentations of a folder with their reference labels.

    Files are paired by case id and must have the same grid. A case that cannot be evaluated does not stop the others,
    nor does one with a file that is changed meanwhile.

    Args:
        prediction_dir: folder of the predictions.
        label_dir: folder of the reference labels, or the label files by case id.
        labels: what is evaluated. Defaults to ``None``: the values found in the files are the classes.
        tolerance: of the surface Dice, in mm. Defaults to 1.0.
        tolerance_in_voxels: see :py:func:`score_case`. Defaults to ``False``.
        allow_missing: leave out labels without a prediction, as when one fold was predicted. Defaults to ``False``.
        processes: number of processes. Defaults to ``None``: one per available core.
        part: evaluate only its cases, see :py:func:`folder_part`; the rows are then those of the classes found in each
            case. Defaults to ``None``: all.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if an argument is invalid, the folders have no case in common, or no case could be evaluated, unless
            there are other parts.
    """
    labels = labels or Labels()
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance}.")
    pairs, problems = pair_cases(prediction_dir, label_dir, allow_missing)
    is_whole = part is None or part.count == 1
    if part is not None and not is_whole:
        pairs = {case: pair for case, pair in pairs.items() if case in part.cases}
        problems = {case: problem for case, problem in problems.items() if case in part.cases}
    importlib.import_module("monai.metrics")  # once, before processes are forked
    score = functools.partial(_score_files, labels=labels, tolerance=tolerance, tolerance_in_voxels=tolerance_in_voxels)
    arguments = {case: (case, pair) for case, pair in pairs.items()}
    states = FileStates(pairs)
    scores, failed = map_cases(score, arguments, processes, "evaluating")
    failed = {**naming_files(failed, pairs), **states.changed()}
    scores = {case: found for case, found in scores.items() if case not in failed}
    problems = dict(sorted({**problems, **failed}.items()))
    if is_whole:
        refuse_nothing(scores, problems)
        labels, rows = complete_rows(scores, labels)
    else:
        rows = [row for _, found in scores.values() for row in found]
    return Evaluation(
        scores=rows,
        labels=labels,
        files={case: pairs[case] for case in scores},
        problems=problems,
        settings=folder_settings(prediction_dir, label_dir, tolerance, tolerance_in_voxels, allow_missing),
        voxels={case: voxels for case, (voxels, _) in scores.items()},
    )


def folder_settings(
    prediction_dir: str | PathLike,
    label_dir: str | PathLike | Mapping[str, str],
    tolerance: float,
    tolerance_in_voxels: bool,
    allow_missing: bool,
) -> dict[str, Any]:
    """Return what is written beside the values; see :py:func:`evaluate_folder`."""
    return {
        "prediction_dir": str(prediction_dir),
        **({} if isinstance(label_dir, Mapping) else {"label_dir": str(label_dir)}),
        **surface_settings(tolerance, tolerance_in_voxels),
        "allow_missing": allow_missing,
    }


def refuse_nothing(scores: Mapping[str, Any], problems: Mapping[str, str]) -> None:
    """
    Raises:
        ValueError: if no case could be evaluated, with the reasons.
    """
    if not scores:
        raise ValueError("no case could be evaluated:\n  " + "\n  ".join(problems.values()))


def surface_settings(tolerance: float, tolerance_in_voxels: bool) -> dict[str, Any]:
    """Return how surface Dice is measured, as it is written beside the values."""
    return {"surface_dice_tolerance": tolerance, "surface_dice_unit": "voxels" if tolerance_in_voxels else "mm"}


def _score_files(
    case: tuple[str, Pair], labels: Labels, tolerance: float, tolerance_in_voxels: bool
) -> tuple[int, list[ClassScores]]:
    """Return the number of voxels that count, and the metrics of a case."""
    name, pair = case
    prediction, reference, spacing = read_pair(pair)
    ignored = 0 if labels.ignore is None else int((reference == labels.ignore).sum())
    try:
        scores = score_case(name, prediction, reference, spacing, labels, tolerance, tolerance_in_voxels)
    except ValueError:
        refuse_unexpected(pair.prediction, prediction, labels)
        refuse_unexpected(pair.reference, reference, labels)
        raise
    return reference.size - ignored, scores


def refuse_unexpected(path: str, array: np.ndarray, labels: Labels) -> None:
    """
    Raises:
        ValueError: naming the file, if it has values that are neither classes nor ignored.
    """
    unexpected = labels.unexpected([int(value) for value in value_counts(array)[0] if value])
    if unexpected:
        known = sorted((labels.classes or {}).values())
        raise ValueError(f"{path}: contains the label value(s) {unexpected}; the classes are {known}.")


def complete_rows(
    scores: Mapping[str, tuple[int, list[ClassScores]]], labels: Labels
) -> tuple[Labels, list[ClassScores]]:
    """
    Return the labels with the classes found, if none were given, and one row for each class in every case.

    Args:
        scores: number of voxels that count, and the metrics of the classes found, by case id.
        labels: what is evaluated.
    """
    if labels.classes is None and not labels.only_regions:
        found = {row.name for _, rows in scores.values() for row in rows} - set(labels.regions)
        classes = {name: int(name) for name in sorted(found, key=int)}
        labels = Labels(classes or None, labels.regions, labels.ignore)
    names = list(labels.named_values())
    completed = []
    for case, (voxels, rows) in scores.items():
        by_name = {row.name: row for row in rows}
        completed += [by_name.get(name) or empty_scores(case, name, voxels) for name in names]
    return labels, completed
