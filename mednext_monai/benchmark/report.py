"""The results: as text for the terminal, as Markdown, and as JSON with the machine and every single value."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import monai
import torch

import mednext_monai
from mednext_monai.networks import get_backend

from ..files import write_atomically
from .timing import OURS, Measurement, ratios, shown, spread

__all__ = ["as_markdown", "as_text", "describe_machine", "one_line", "write_json"]


def describe_machine(device: str) -> dict:
    """Return processor, threads, versions and, if it is used, the GPU."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    machine = {
        "cpu": names[0].strip() if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "mednext_monai": mednext_monai.__version__,
        "backend": get_backend(),
        "preloaded": os.environ.get("LD_PRELOAD", ""),  # perhaps another allocator
        "date": time.strftime("%Y-%m-%d"),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        machine["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        machine["cuda"], machine["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return machine


def one_line(machine: dict) -> str:
    """Return the machine as a line of text."""
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    count = machine.get("load", 0)
    load = f"; {count} busy process{'es' * (count > 1)} beside it" if count else ""
    return f"{gpu}{cpu}; torch {machine['torch']}, MONAI {machine['monai']}; backend {machine['backend']}{load}"


def _command_line(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "mednext_monai.benchmark", *arguments])


def write_json(path: Path, machine: dict, arguments: Sequence[str], measurements: Sequence[Measurement]) -> None:
    """Write the machine, the command and every measurement with all its values."""
    found = [measurement.to_dict() for measurement in measurements]
    content = {"machine": machine, "command": _command_line(arguments), "measurements": found}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def as_text(machine: dict, measurements: Sequence[Measurement]) -> str:
    """Return one block per measurement, one line per contestant."""
    lines = [one_line(machine)]
    for m in measurements:
        heads = ["", f"median {m.unit}", "min", "max", m.work_unit, "over ours", "min", "max", "error"]
        rows = [heads, *(_row(m, name) for name in m.values)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines += ["", f"{m.section}: {m.title}"]
        for first, *cells, last in rows:
            numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
            lines.append("  " + "  ".join([first.ljust(max(widths[0], 14)), *numbers, last]).rstrip())
        lines += [f"  {name} skipped: {reason}" for name, reason in m.skipped.items()]
        lines += [f"  {note}" for note in m.notes]
    return "\n".join(lines)


def _row(measurement: Measurement, name: str) -> list[str]:
    values, ratio = spread(measurement.values[name]), ratios(measurement.values).get(name)
    rate = f"{measurement.work / values['median']:.3g}" if measurement.work else ""
    factors = [f"{value:.2f}" for value in ratio.values()] if ratio else [""] * 3
    errors = measurement.agreement.get(name, {}).items()
    error = ", ".join(f"{what} {value:.1e}" if value else f"{what} 0" for what, value in errors)
    return [name, *map(_number, values.values()), rate, *factors, error]


def _number(value: float) -> str:
    """Format with three significant digits and without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".") if value >= 0.01 else f"{value:.4f}"


def as_markdown(machine: dict, arguments: Sequence[str], measurements: Sequence[Measurement]) -> str:
    """Return a table, a row per measurement and a column per other contestant, followed by the command."""
    others = list(dict.fromkeys(name for m in measurements for name in m.values if name != OURS))
    heads = ["", "ours", *(f"{shown(name)} / ours" for name in others), "largest error"]
    rows = [heads, ["---"] * len(heads)]
    for m in measurements:
        found = ratios(m.values)
        errors = [error for of_one in m.agreement.values() for error in of_one.values()]
        largest = (f"{max(errors):.0e}" if any(errors) else "0") if errors else ""
        own = f"{_number(spread(m.values[OURS])['median'])} {m.unit}"
        rows.append(
            [f"{m.section} {m.title}", own, *(_ratio(found[name]) if name in found else "" for name in others), largest]
        )
    table = [f"| {' | '.join(row)} |" for row in rows]
    text = "Medians (smallest to largest) of the ratios within the rounds; above 1, ours is faster, or smaller."
    return "\n".join([*table, "", f"{text} {one_line(machine)}. `{_command_line(arguments)}`"])


def _ratio(found: dict[str, float]) -> str:
    limits = f" ({found['min']:.2f} to {found['max']:.2f})" if found["min"] < found["max"] else ""
    return f"{found['median']:.2f}{limits}"
