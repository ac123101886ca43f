"""The tables of an evaluation: ``metrics.csv``, a row per case and class, and ``metrics.json``, their statistics."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import write_atomically
from .labels import Labels
from .metrics import ClassScores
from .summary import summarize

__all__ = ["package_versions", "write_metrics"]


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
    files = [Path(output_dir, "metrics.csv"), Path(output_dir, "metrics.json")]
    content = {
        "settings": {
            **(settings or {}),
            "classes": dict(labels.classes or {}),
            "regions": {name: list(values) for name, values in labels.regions.items()},
            "ignore_label": labels.ignore,
        },
        "versions": package_versions(),
        **summarize(scores, labels),
        "problems": dict(problems or {}),
    }
    write_atomically(files[0], _csv(scores).encode())
    write_atomically(files[1], json.dumps(content, indent=2, allow_nan=False).encode())
    return files


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that determine the values."""
    packages = {name: version(name) for name in ("monai", "torch", "numpy", "scipy", "nibabel")}
    return {"mednext_monai": __version__, **packages, "python": platform.python_version()}


def _csv(scores: Sequence[ClassScores]) -> str:
    text = io.StringIO()
    rows = [{"class" if key == "name" else key: value for key, value in asdict(row).items()} for row in scores]
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        )
    return text.getvalue()
