"""
The tables of an evaluation: ``metrics.csv``, a row per case and class, and ``metrics.json``, their statistics.

``mednext evaluate-folder`` and the bundles' ``evaluating`` write them with :py:func:`write_evaluation`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike
from os.path import realpath
from pathlib import Path
from typing import Any

from ..environment import package_versions
from ..files import read_json, write_atomically
from .folder import Evaluation
from .labels import Labels
from .metrics import ClassScores
from .nnunet import AUTHOR, SUMMARY, write_nnunet_summary
from .summary import summarize

__all__ = ["check_tables", "write_evaluation", "write_metrics"]

FORMATS = ("table", "nnunet")
TABLE, STATISTICS = "metrics.csv", "metrics.json"
COLUMNS = ["class" if field.name == "name" else field.name for field in fields(ClassScores)]
SOURCE = ("prediction_dir", "label_dir", "checkpoint", "fold", "dataset_dir")  # settings: what was evaluated


def check_tables(
    output_dir: str | PathLike, settings: Mapping[str, Any], format: str = "table", overwrite: bool = False
) -> None:
    """
    Check that the tables of an evaluation replace only those of an earlier evaluation of the same segmentations.

    Args:
        output_dir: folder of the tables.
        settings: those that will be written, with the folders, or with checkpoint, fold and data set.
        format: ``"table"``, or ``"nnunet"`` for ``summary.json`` too. Defaults to ``"table"``.
        overwrite: whether other files may be replaced. Defaults to ``False``.

    Raises:
        ValueError: if ``format`` is another one, or naming the file that would be replaced, and what it holds.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format!r}.")
    if overwrite:
        return
    old = _read_json(Path(output_dir, STATISTICS))
    ours = old is not None and "mednext_monai" in _object(old, "versions")
    advice = "choose another output_dir, or allow it to be replaced with --overwrite true."
    for name in (TABLE, STATISTICS, *([SUMMARY] if format == "nnunet" else [])):
        path = Path(output_dir, name)
        if path.exists() and not (ours and _is_ours(path)):
            raise ValueError(f"output_dir: {path} exists and is not a table of this package; {advice}")
    written = _object(old or {}, "settings")
    for key in SOURCE if ours else ():
        if key in written and not _same(written[key], settings.get(key)):
            path = Path(output_dir, STATISTICS)
            raise ValueError(f"output_dir: {path} holds another evaluation, of {key} {written[key]}; {advice}")


def write_evaluation(evaluation: Evaluation, output_dir: str | PathLike, format: str = "table") -> list[Path]:
    """
    Write the tables of an evaluation, each atomically.

    Args:
        evaluation: the evaluation.
        output_dir: folder of the files, which is created if it is missing.
        format: ``"table"`` for ``metrics.csv`` and ``metrics.json``; ``"nnunet"`` for the ``summary.json`` of nnU-Net
            v1 too. Defaults to ``"table"``.

    Returns:
        the paths of the files.
    """
    tables = write_metrics(evaluation.scores, evaluation.labels, output_dir, evaluation.settings, evaluation.problems)
    return [*tables, *([write_nnunet_summary(evaluation, output_dir)] if format == "nnunet" else [])]


def write_metrics(
    scores: Sequence[ClassScores],
    labels: Labels,
    output_dir: str | PathLike,
    settings: Mapping[str, Any] | None = None,
    problems: Mapping[str, str] | None = None,
) -> list[Path]:
    """
    Write ``metrics.csv`` and ``metrics.json``, atomically.

    The columns of the CSV file are the attributes of :py:class:`ClassScores`, with ``class`` for ``name``; a metric
    without a value is an empty cell. The JSON file has the result of :py:func:`summarize` and what led to it; there it
    is ``null``.

    Args:
        scores: the metrics of every case and class.
        labels: what was evaluated, with its classes.
        output_dir: folder of the files, which is created if it is missing.
        settings: what determined the values. Defaults to ``None``.
        problems: a message for each case that could not be evaluated. Defaults to ``None``.

    Returns:
        the paths of both files.
    """
    files = [Path(output_dir, TABLE), Path(output_dir, STATISTICS)]
    content = {
        "settings": {
            **(settings or {}),
            "classes": dict(labels.classes or {}),
            "regions": {name: list(values) for name, values in labels.regions.items()},
            "only_regions": labels.only_regions,
            "ignore_label": labels.ignore,
        },
        "versions": package_versions(),
        **summarize(scores, labels),
        "problems": dict(problems or {}),
    }
    write_atomically(files[0], _csv(scores).encode())
    write_atomically(files[1], json.dumps(content, indent=2, allow_nan=False).encode())
    return files


def _csv(scores: Sequence[ClassScores]) -> str:
    text = io.StringIO()
    rows = [{"class" if key == "name" else key: value for key, value in asdict(row).items()} for row in scores]
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        )
    return text.getvalue()


def _is_ours(path: Path) -> bool:
    """Return whether a table was written by this package."""
    if path.name == TABLE:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip() == ",".join(COLUMNS)
    content = _read_json(path) or {}
    return content.get("author") == AUTHOR if path.name == SUMMARY else "versions" in content


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or ``None`` if there is none."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _same(one: Any, other: Any) -> bool:
    """Return whether two settings are equal; they may be paths, written in different ways."""
    return str(one) == str(other) or (None not in (one, other) and _real(one) == _real(other))


def _real(path: Any) -> str:
    return str(path) if "\0" in str(path) else realpath(str(path))  # which no path has
