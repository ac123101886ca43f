"""Statistics over cases: mean, sd, median and worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .labels import Labels
from .metrics import ClassScores

__all__ = ["METRICS", "summarize", "text_table"]

METRICS = ("dice", "surface_dice", "hd95_mm", "volume_difference_ml", "relative_volume_difference")
WORST = 5  # cases in a list


def summarize(scores: Sequence[ClassScores], labels: Labels) -> dict[str, Any]:
    """
    Return the statistics of an evaluation.

    Args:
        scores: the metrics of every case and class.
        labels: what was evaluated, with its classes.

    Returns:
        under ``classes`` and ``regions``, by name and metric, the ``mean``, sample standard deviation (``sd``) and
        ``median`` of the cases that have a value, the number of ``values``, and the cases ``without_value`` with the
        reason; under ``mean_over_classes`` and ``mean_over_regions`` the mean of their means by metric; under
        ``worst_cases`` the lowest Dice values of all. No value is ``None``.
    """
    by_name: dict[str, list[ClassScores]] = {name: [] for name in labels.named_values()}
    for row in scores:
        by_name[row.name].append(row)
    classes = [] if labels.only_regions else list(labels.classes or {})
    statistics = {
        name: {metric: _statistics(rows, metric) for metric in METRICS} for name, rows in by_name.items() if rows
    }
    summary: dict[str, Any] = {"cases": len({row.case for row in scores})}
    for kind, names in (("classes", classes), ("regions", list(labels.regions))):
        summary[kind] = {name: statistics[name] for name in names if name in statistics}
        means = {metric: [found[metric]["mean"] for found in summary[kind].values()] for metric in METRICS}
        summary[f"mean_over_{kind}"] = {metric: _mean(values) for metric, values in means.items()}
    worst = sorted((row for row in scores if not math.isnan(row.dice)), key=lambda row: row.dice)[:WORST]
    summary["worst_cases"] = [
        {
            "case": row.case,
            "class": row.name,
            **{metric: _or_none(getattr(row, metric)) for metric in METRICS},
            "note": row.note,
        }
        for row in worst
    ]
    return summary


def text_table(summary: Mapping[str, Any]) -> str:
    """Return the result of :py:func:`summarize` as a table of the most important values, and the worst cases."""
    rows: list[tuple[str, ...]] = [
        ("", "Dice", "sd", "median", "surface Dice", "HD95 mm", "volume diff. ml", "values", "of HD95")
    ]
    for kind in ("classes", "regions"):
        for name, found in summary[kind].items():
            dice = found["dice"]
            means = [found[metric]["mean"] for metric in METRICS[1:4]]
            shown = [_shown(value) for value in (dice["mean"], dice["sd"], dice["median"], *means)]
            rows.append((name, *shown, f"{dice['values']} of {summary['cases']}", str(found["hd95_mm"]["values"])))
        if len(summary[kind]) > 1:
            over = summary[f"mean_over_{kind}"]
            shown = [_shown(over[metric]) for metric in METRICS[1:4]]
            rows.append((f"mean over {kind}", _shown(over["dice"]), "", "", *shown, "", ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
    worst = [
        f"  {row['case']}  {row['class']}  {row['dice']:.4f}" + (f"  ({row['note']})" if row["note"] else "")
        for row in summary["worst_cases"]
    ]
    return "\n".join([*lines, *(["", "lowest Dice:", *worst] if worst else [])])


def _statistics(rows: Sequence[ClassScores], metric: str) -> dict[str, Any]:
    values = np.array([getattr(row, metric) for row in rows], dtype=np.float64)
    defined = values[~np.isnan(values)]
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else None,
        "median": float(np.median(defined)) if len(defined) else None,
        "values": len(defined),
        "without_value": {row.case: row.note for row, value in zip(rows, values) if math.isnan(value)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4f}"
