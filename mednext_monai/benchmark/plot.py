"""The chart: a bar for every ratio to ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..files import atomic_path
from .report import one_line
from .timing import Measurement, ratios, shown

__all__ = ["draw"]


def draw(path: Path, machine: dict, measurements: Sequence[Measurement]) -> None:
    """Draw the ratios of every measurement as bars, with a line from the smallest to the largest; write a PNG file."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    y, labels, ratios_of, bars = 0.0, {}, {}, []  # labels: by position; ratios_of: by contestant, with positions
    for measurement in measurements:
        if found := ratios(measurement.values):
            labels[y + (len(found) - 1) / 2] = f"{measurement.section} {measurement.title}"
            for number, (name, ratio) in enumerate(found.items()):
                ratios_of.setdefault(name, []).append((y + number, *ratio.values()))
            y += len(found) + 0.5
    for name, values in ratios_of.items():
        positions, medians, smallest, largest = zip(*values)
        limits = [[abs(m - limit) for m, limit in zip(medians, found)] for found in (smallest, largest)]
        bars.append(axes.barh(positions, medians, height=0.9, xerr=limits, label=shown(name)))
        axes.bar_label(bars[-1], fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks([*labels], [*labels.values()])
    axes.tick_params(length=0)
    axes.set(xlim=(0, max(axes.get_xlim()[1] * 1.05, 1.2)), ylim=(max(y, 1) - 0.5, -1), axisbelow=True)
    axes.axvline(1, color="black", linewidth=1, zorder=0.9)
    axes.grid(axis="x", color="#dddddd")
    axes.spines[:].set_visible(False)
    legend = figure.legend(handles=bars, loc="outside upper center", ncols=4, frameon=False)
    legend.set_title("How many times faster, or smaller, ours is than ...", {"size": 13})
    figure.supxlabel(one_line(machine), fontsize=7, color="#666666")
    figure.set_size_inches(9, 1.8 + 0.18 * y)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200)
