"""The chart: a bar for every ratio to ours, grouped by section."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from ..files import atomic_path
from .report import one_line
from .timing import Measurement, ratios, shown

__all__ = ["draw"]


def draw(path: Path, machine: dict, measurements: Sequence[Measurement]) -> None:
    """Draw the ratios of every measurement as bars, with a line from the smallest to the largest; write a PNG file."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    compared = [m for m in measurements if ratios(m.values)]
    names = list(dict.fromkeys(name for m in compared for name in ratios(m.values)))
    y, rows, headings, bars = 0.0, {}, [], {}  # rows: labels by position; bars: one per name, for the legend
    for section, group in groupby(compared, key=lambda m: m.section):
        headings.append(len(rows))
        rows[y + 0.3] = section.capitalize()
        y += 1.4
        for measurement in group:
            found = ratios(measurement.values)
            rows[y + (len(found) - 1) / 2] = measurement.title
            for name, ratio in found.items():
                bars[shown(name)] = _draw_bar(axes, y, ratio, f"C{names.index(name)}")
                y += 1
            y += 0.5
    axes.set_yticks([*rows], [*rows.values()])
    for number in headings:
        axes.get_yticklabels()[number].set_fontweight("bold")
    axes.tick_params(length=0)
    axes.set(xlim=(0, max(axes.get_xlim()[1] * 1.05, 1.2)), ylim=(max(y, 1) - 0.5, -0.5), axisbelow=True)
    axes.axvline(1, color="black", linewidth=1, zorder=0.9)
    axes.grid(axis="x", color="#dddddd")
    axes.spines[:].set_visible(False)
    legend = figure.legend(bars.values(), bars, loc="outside upper center", ncols=4, frameon=False)
    legend.set_title("How many times faster, or smaller, ours is than ...", {"size": 13})
    figure.supxlabel(one_line(machine), fontsize=7, color="#666666")
    figure.set_size_inches(9, 1.8 + 0.18 * y)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200)


def _draw_bar(axes: Axes, y: float, ratio: dict[str, float], color: str) -> BarContainer:
    bars = axes.barh(y, ratio["median"], height=0.9, color=color)
    axes.hlines(y, ratio["min"], ratio["max"], color="black", linewidth=1)
    end = (ratio["max"], y)
    axes.annotate(f"{ratio['median']:.2f}", end, (3, 0), textcoords="offset points", va="center", fontsize=8)
    return bars
