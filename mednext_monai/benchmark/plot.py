"""The picture: a bar for every ratio to ours, grouped by section, drawn with Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import write_atomically
from .machine import one_line
from .timing import Measurement, ratios, shown

__all__ = ["draw"]

SCALE = 2  # pixels per unit below, for sharp text
WIDTH, LEFT, RIGHT, EDGE = 900, 300, 70, 20
BAR, GAP, HEADING, TITLE, LEGEND, FOOT = 15, 8, 30, 40, 26, 34
INK, PALE, GRID = "#222222", "#666666", "#dddddd"
COLOURS = {  # Okabe and Ito's, which colour-blind people can tell apart; compiled is the lighter one
    "plain": "#999999",
    "plain compiled": "#c8c8c8",
    "monai": "#0072b2",
    "monai compiled": "#7fb8d8",
    "original": "#d55e00",
    "original compiled": "#eab07f",
    "batchgeneratorsv2": "#009e73",
    "scikit-image": "#cc79a7",
}
HEADINGS = {
    "forward": "Forward",
    "training": "Forward and backward",
    "memory": "Peak memory of one step",
    "window": "Sliding window over a volume",
    "augmentation": "Augmentation",
    "preprocessing": "Preprocessing",
}


def draw(path: Path, machine: dict, measurements: Sequence[Measurement]) -> None:
    """
    Draw the ratios of every measurement as bars, with a whisker from the smallest to the largest round.

    Args:
        path: the PNG file to write.
        machine: as ``machine.describe_machine`` gives it.
        measurements: those with no other contestant than ours are left out.
    """
    compared = [(m, ratios(m.values)) for m in measurements]
    compared = [(m, found) for m, found in compared if found]
    sections = len(list(groupby(compared, key=lambda pair: pair[0].section)))
    height = TITLE + LEGEND + FOOT + sections * HEADING + sum(BAR * len(found) + GAP for _, found in compared)
    canvas = _Canvas(WIDTH, height)
    axis = _Axis(max((ratio["median"] for _, found in compared for ratio in found.values()), default=1.0))
    canvas.text(EDGE, 22, "How many times faster, or smaller, ours is than ...", 17, INK)
    canvas.legend(TITLE + 6, list(dict.fromkeys(name for _, found in compared for name in found)))
    top = TITLE + LEGEND
    axis.draw(canvas, top, height - FOOT)
    for section, group in groupby(compared, key=lambda pair: pair[0].section):
        canvas.text(EDGE, top + HEADING / 2 + 3, HEADINGS[section], 14, INK)
        top += HEADING
        for measurement, found in group:
            top = _group(canvas, axis, top, measurement, found)
    canvas.text(EDGE, height - 14, one_line(machine), 10, PALE)
    write_atomically(path, canvas.png())


def _group(canvas: _Canvas, axis: _Axis, top: float, measurement: Measurement, found: dict) -> float:
    """Draw the bars of one measurement and return where the next begins."""
    name = measurement.case + (", tuned allocator" if measurement.allocator == "tuned" else "")
    canvas.text(LEFT - 10, top + BAR * len(found) / 2, name, 11, INK, anchor="rm")
    for other, ratio in found.items():
        middle = top + BAR / 2
        canvas.box(LEFT, top + 1, axis.at(ratio["median"]), top + BAR - 1, COLOURS.get(other, PALE))
        if ratio["min"] < ratio["max"]:
            canvas.line(axis.at(ratio["min"]), middle, axis.at(ratio["max"]), middle, INK)
        canvas.text(axis.at(ratio["max"]) + 6, middle, f"{ratio['median']:.2f}", 11, INK)
        top += BAR
    return top + GAP


class _Axis:
    """The scale of the ratios, from 0 to somewhat more than the largest bar; whiskers beyond are cut."""

    def __init__(self, largest: float) -> None:
        self.end = max(1.15 * largest, 1.2)
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, self.end) if self.end / step <= 9)
        self.ticks = [i * step for i in range(1 + int(self.end / step))]

    def at(self, ratio: float) -> float:
        return LEFT + min(ratio, self.end) / self.end * (WIDTH - LEFT - RIGHT)

    def draw(self, canvas: _Canvas, top: float, bottom: float) -> None:
        for tick in self.ticks:
            canvas.line(self.at(tick), top, self.at(tick), bottom, GRID)
            canvas.text(self.at(tick), bottom + 8, f"{tick:g}", 10, PALE, anchor="mm")
        canvas.line(self.at(1), top, self.at(1), bottom, INK)


class _Canvas:
    """Pillow with coordinates that do not know the resolution."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str = "lm") -> float:
        """Write text and return its width."""
        font = ImageFont.load_default(size * SCALE)
        self.pen.text((x * SCALE, y * SCALE), text, colour, font, anchor, stroke_width=SCALE, stroke_fill="white")
        return self.pen.textlength(text, font=font) / SCALE

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self.pen.rectangle([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE - 1], fill=colour)

    def line(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self.pen.line([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], fill=colour, width=SCALE)

    def legend(self, y: float, names: Sequence[str]) -> None:
        x = float(EDGE)
        for name in names:
            self.box(x, y - 6, x + 12, y + 6, COLOURS.get(name, PALE))
            x += 34 + self.text(x + 17, y, shown(name), 12, INK)

    def png(self) -> bytes:
        stream = io.BytesIO()
        self.image.save(stream, "PNG", optimize=True)
        return stream.getvalue()
