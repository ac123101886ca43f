"""The results as text for the screen, as Markdown for a page, and as JSON with every single value."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomically
from .machine import one_line
from .timing import OURS, Measurement, ratios, shown, spread

__all__ = ["as_markdown", "as_text", "command_line", "write_json"]


def write_json(path: Path, machine: dict, arguments: Sequence[str], measurements: Sequence[Measurement]) -> None:
    """Write the machine, the command and every measurement with all its values, whole or not at all."""
    content = {
        "machine": machine,
        "command": command_line(arguments),
        "measurements": [measurement.to_dict() for measurement in measurements],
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that was run."""
    return shlex.join(["python", "-m", "mednext_monai.benchmark", *arguments])


def as_text(machine: dict, measurements: Sequence[Measurement]) -> str:
    """Return one block per measurement, one line per contestant."""
    lines = [one_line(machine)]
    for measurement in measurements:
        heading = f"{measurement.section}: {measurement.case}"
        if measurement.allocator != "default":
            heading += f", {measurement.allocator} allocator"
        columns = ["", f"median {measurement.unit}", "min", "max", measurement.work_unit]
        columns += ["over ours", "min", "max", "error"]
        rows = [columns, *_rows(measurement)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        lines += ["", heading]
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths)]
            cells[0], cells[-1] = row[0].ljust(max(widths[0], 14)), row[-1]
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [f"  {name} skipped: {reason}" for name, reason in measurement.skipped.items()]
        lines += [f"  {note}" for note in measurement.notes]
    return "\n".join(lines)


def _rows(measurement: Measurement) -> list[list[str]]:
    rows, compared = [], ratios(measurement.values)
    for name, values in measurement.values.items():
        times = spread(values)
        rate = f"{measurement.work / times['median']:.3g}" if measurement.work else ""
        factors = [f"{compared[name][key]:.2f}" if name in compared else "" for key in ("median", "min", "max")]
        errors = measurement.agreement.get(name, {})
        error = ", ".join(f"{what} {value:.1e}" if value else f"{what} 0" for what, value in errors.items())
        rows.append([name, *(_number(times[key]) for key in ("median", "min", "max")), rate, *factors, error])
    return rows


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".") if value >= 0.01 else f"{value:.4f}"


def as_markdown(machine: dict, arguments: Sequence[str], measurements: Sequence[Measurement]) -> str:
    """Return one table, one line per measurement and one column per other contestant, and how to make it again."""
    others = list(dict.fromkeys(name for m in measurements for name in m.values if name != OURS))
    heads = ["", "ours", *(f"{shown(name)} / ours" for name in others), "largest error"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for m in measurements:
        compared = ratios(m.values)
        what = f"{m.section} {m.case}" + (f", {m.allocator} allocator" if m.allocator != "default" else "")
        errors = [value for of_one in m.agreement.values() for value in of_one.values()]
        cells = [what, f"{_number(spread(m.values[OURS])['median'])} {m.unit}"]
        cells += [_ratio(compared.get(name)) for name in others]
        cells.append((f"{max(errors):.0e}" if any(errors) else "0") if errors else "")
        lines.append(f"| {' | '.join(cells)} |")
    text = "Medians (smallest to largest) of the ratios within the rounds; above 1, ours is faster, or smaller."
    return "\n".join([*lines, "", f"{text} {one_line(machine)}. `{command_line(arguments)}`"])


def _ratio(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    if found["min"] == found["max"]:
        return f"{found['median']:.2f}"
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
