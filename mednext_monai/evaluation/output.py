"""
The tables of an evaluation: ``metrics.csv``, a row per case and class, and ``metrics.json``, their statistics.

``mednext evaluate-folder`` and the bundles' ``evaluating`` write them with :py:func:`finish_evaluation`, all cases at
once or in parts.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike
from os.path import abspath, realpath
from pathlib import Path
from typing import Any

from ..environment import package_versions
from ..files import json_object, write_atomically
from .folder import Evaluation
from .labels import Labels
from .metrics import ClassScores
from .nnunet import AUTHOR, SUMMARY, write_nnunet_summary
from .parts import ADVICE, SOURCE, Part, check_parts, gather_parts, missing_parts, remove_other_parts, write_part
from .summary import summarize, text_table

__all__ = ["check_tables", "finish_evaluation", "print_missing", "write_evaluation", "write_metrics"]

FORMATS = ("table", "nnunet")
TABLE, STATISTICS = "metrics.csv", "metrics.json"
COLUMNS = ["class" if field.name == "name" else field.name for field in fields(ClassScores)]


def check_tables(
    output_dir: str | PathLike,
    settings: Mapping[str, Any],
    format: str = "table",
    overwrite: bool = False,
    part: Part | None = None,
) -> None:
    """
    Check that the tables of an evaluation replace only those of an earlier evaluation of the same segmentations.

    Args:
        output_dir: folder of the tables.
        settings: those that will be written, with the folders, or with checkpoint, fold and data set.
        format: ``"table"``, or ``"nnunet"`` for ``summary.json`` too. Defaults to ``"table"``.
        overwrite: whether other files may be replaced. Defaults to ``False``.
        part: the part that will be evaluated; parts of another evaluation must not be there. Defaults to ``None``: all
            cases.

    Raises:
        ValueError: if ``format`` is another one, or naming the file that would be replaced, and what it holds.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format!r}.")
    if overwrite:
        return
    if part is not None:
        check_parts(output_dir, part)
    old = json_object(Path(output_dir, STATISTICS))
    ours = "mednext_monai" in _object(old, "versions")
    for name in (TABLE, STATISTICS, *([SUMMARY] if format == "nnunet" else [])):
        path = Path(output_dir, name)
        if path.exists() and not _is_ours(path):
            raise ValueError(f"output_dir: {path} exists and is not a table of this package; {ADVICE}")
    written = _object(old, "settings")
    for key in SOURCE if ours else ():
        if key in written and not _same(written[key], settings.get(key)):
            path = Path(output_dir, STATISTICS)
            raise ValueError(f"output_dir: {path} holds another evaluation, of {key} {written[key]}; {ADVICE}")


def finish_evaluation(
    evaluation: Evaluation,
    output_dir: str | PathLike,
    format: str = "table",
    part: Part | None = None,
    overwrite: bool = False,
) -> Evaluation | None:
    """
    Write the tables of an evaluation, and print their summary and the files.

    Of one part of an evaluation the rows are written, and the tables only if those of all other parts are there: then
    the tables are those of an undivided evaluation. Otherwise, :py:func:`print_missing` says which are missing.

    Args:
        evaluation: the evaluation.
        output_dir: folder of the files, which is created if it is missing.
        format: see :py:func:`write_evaluation`. Defaults to ``"table"``.
        part: the part. Defaults to ``None``: all cases.
        overwrite: whether parts of another evaluation may be replaced. Defaults to ``False``.

    Returns:
        the evaluation of all cases, or ``None`` if parts are missing.

    Raises:
        ValueError: if no case of any part could be evaluated, or a part of another evaluation would be replaced.
    """
    written = []
    if part is not None and part.count > 1:
        written.append(write_part(evaluation, part, output_dir, overwrite))
        whole = gather_parts(part, output_dir, evaluation.labels)
        if whole is None:
            print(f"{len(evaluation.files)} cases, wrote {written[0]}", flush=True)
            return None
        evaluation = whole
    written += write_evaluation(evaluation, output_dir, format)
    if part is not None and part.count > 1 and overwrite:
        remove_other_parts(part, output_dir)
    print(text_table(summarize(evaluation.scores, evaluation.labels)))
    print("", *(f"wrote {file}" for file in written), sep="\n", flush=True)
    return evaluation


def print_missing(part: Part, output_dir: str | PathLike) -> None:
    """Print which parts of an evaluation are still missing after one of them, if any are."""
    missing = missing_parts(part, output_dir) if part.count > 1 else {}
    if missing:
        others = [file for file in missing.values() if file]
        note = f" ({', '.join(others)}: of another evaluation, not used)" if others else ""
        named = f"part{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        print(f"part {part.index} of {part.count} is done; still missing: {named}{note}", flush=True)


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
        settings: what determined the values; paths are written as absolute ones. Defaults to ``None``.
        problems: a message for each case that could not be evaluated. Defaults to ``None``.

    Returns:
        the paths of both files.
    """
    files = [Path(output_dir, TABLE), Path(output_dir, STATISTICS)]
    content = {
        "settings": {
            **{key: _absolute(key, value) for key, value in (settings or {}).items()},
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
    content = json_object(path)
    return content.get("author") == AUTHOR if path.name == SUMMARY else "mednext_monai" in _object(content, "versions")


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _absolute(key: str, value: Any) -> Any:
    """Return a setting as it is written: a path so that it is found from any working directory."""
    return abspath(value) if key in SOURCE and key != "fold" and isinstance(value, (str, PathLike)) else value


def _same(one: Any, other: Any) -> bool:
    """Return whether two settings are equal; they may be paths, written in different ways."""
    return str(one) == str(other) or (None not in (one, other) and _real(one) == _real(other))


def _real(path: Any) -> str:
    return str(path) if "\0" in str(path) else realpath(str(path))  # which no path has
