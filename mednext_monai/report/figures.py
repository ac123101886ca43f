"""Curves and box plots as SVG elements, for the HTML report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

__all__ = ["box_plot", "line_chart", "stand_alone"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
WIDTH, HEIGHT = 720, 260  # of the view box of curves
LEFT, RIGHT, TOP, BASE = 60, WIDTH - 12, 44, HEIGHT - 36  # of the plot
NAMES = 190  # width of the names of a box plot
ROW = 30  # height of a box and its name
MAX_POINTS = 500  # of a curve; more are averaged
MAX_NAME = 28  # characters

Point = tuple[float, float]


def line_chart(title: str, unit: str, series: Mapping[str, Sequence[Point]]) -> str:
    """
    Draw curves over a common axis.

    Args:
        title: the quantity shown.
        unit: unit of the horizontal axis.
        series: points ``(x, y)`` by the name of the curve, sorted by ``x``; those that are not finite are left out.
            A curve of more than 500 points is shown by means of neighbors.
    """
    shown = {name: _thinned([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    points = np.array([point for curve in shown.values() for point in curve] or [(0.0, 0.0)], dtype=np.float64)
    (x_low, y_low), (x_high, y_high) = points.min(0), points.max(0)
    y_ticks, x_ticks = _ticks(y_low, y_high), _ticks(x_low, x_high)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        return LEFT + across * (RIGHT - LEFT), BASE - (y - y_low) / ((y_high - y_low) or 1) * (BASE - TOP)

    elements = [_text(LEFT, 14, title, "start", "title")]
    for tick in y_ticks:
        y = place(x_low, tick)[1]
        elements += [_line(LEFT, y, RIGHT, y, "#e6e9ec"), _text(LEFT - 6, y + 4, f"{tick:.4g}", "end")]
    for tick in (tick for tick in x_ticks if x_low <= tick <= x_high):
        elements.append(_text(place(tick, y_low)[0], BASE + 16, f"{tick:g}"))
    elements.append(_text((LEFT + RIGHT) / 2, BASE + 31, unit))
    x = float(LEFT)
    for (name, curve), color in zip(shown.items(), _colors(len(shown))):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in curve))
        if len(curve) == 1:
            a, b = place(*curve[0])
            elements.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>')
        elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        elements += [_line(x, 30, x + 14, 30, color, 3), _text(x + 19, 34, name, "start")]
        x += 40 + 6.2 * len(name)
    return _svg(WIDTH, HEIGHT, f"curves: {title}", elements)


def stand_alone(chart: str) -> str:
    """Return a chart of this module as the content of an SVG file."""
    start, end = chart.index("<svg "), chart.index("</svg>")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
    style = "<style>text{font:11px sans-serif;fill:#566069}.title{font-weight:600;fill:#1d2329}</style>"
    body = chart[chart.index(">", start) + 1 : end]
    attributes = chart[start + len("<svg ") : chart.index(">", start)]
    return f'{head}{attributes}>{style}<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'


def box_plot(title: str, groups: Mapping[str, Mapping[str, float]], low: float = 0.0, high: float = 1.0) -> str:
    """
    Draw a box for each group: quartiles and median; whiskers reach the values within 1.5 box lengths; all values.

    Args:
        title: the quantity shown.
        groups: values by case, by the name of the group; NaN is left out, and a group without values is named.
        low: left end of the axis. Defaults to 0.0.
        high: right end of the axis. Defaults to 1.0.
    """
    base = TOP + ROW * len(groups)
    elements = [_text(LEFT, 14, title, "start", "title")]
    for tick in _ticks(low, high):
        x = _across(tick, low, high)
        elements += [_line(x, TOP - 12, x, base, "#e6e9ec"), _text(x, base + 16, f"{tick:.4g}")]
    for index, (name, values) in enumerate(groups.items()):
        y = TOP + ROW * index + ROW / 2 - 6
        short = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
        elements.append(_text(NAMES - 8, y + 4, short, "end"))
        elements += _box({case: value for case, value in values.items() if math.isfinite(value)}, y, low, high)
    return _svg(WIDTH, base + 26, f"box plot: {title}", elements)


def _box(values: Mapping[str, float], y: float, low: float, high: float) -> list[str]:
    if not values:
        return [_text(NAMES + 6, y + 4, "no value", "start")]
    found = np.array(list(values.values()), dtype=np.float64)
    lower, median, upper = np.percentile(found, (25, 50, 75))
    reach = 1.5 * (upper - lower)
    inside = found[(found >= lower - reach) & (found <= upper + reach)]
    ends = [_across(value, low, high) for value in (inside.min(), lower, median, upper, inside.max())]
    elements = [
        _line(ends[0], y, ends[4], y, "#566069"),
        f'<rect x="{ends[1]:.1f}" y="{y - 8:.1f}" width="{ends[3] - ends[1]:.1f}" height="16" fill="#cfe0f2" '
        'stroke="#3b6fb6"/>',
    ]
    for index, (case, value) in enumerate(values.items()):
        shift = (index % 5 - 2) * 2.4  # apart, without randomness
        label = escape(f"{case}: {value:.4f}")
        x = _across(value, low, high)
        elements.append(f'<circle cx="{x:.1f}" cy="{y + shift:.1f}" r="2.2" fill="#1d2329" fill-opacity="0.45">')
        elements[-1] += f"<title>{label}</title></circle>"
    return [*elements, _line(ends[2], y - 8, ends[2], y + 8, "#d55e00", 2.5)]


def _across(value: float, low: float, high: float) -> float:
    return NAMES + (min(max(value, low), high) - low) / (high - low) * (RIGHT - NAMES - 10)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most ``MAX_POINTS`` points, means of neighbors."""
    if len(points) <= MAX_POINTS:
        return list(points)
    parts = np.array_split(np.array(points, dtype=np.float64), MAX_POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(0) for part in parts)]


def _ticks(low: float, high: float) -> list[float]:
    """Return round values that span a range."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _svg(width: float, height: float, label: str, elements: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return f"<div class='chart'>{head}{''.join(elements)}</svg></div>"
