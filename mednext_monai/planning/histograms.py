"""Histograms as SVG elements, for the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["histogram"]

WIDTH, HEIGHT = 300, 150  # of the view box
LEFT, RIGHT = 10, WIDTH - 10
BASE, BAR_HEIGHT = 112, 78  # lower edge and maximum height of the bars


def histogram(
    series: Sequence[tuple[str, str, np.ndarray]], title: str, unit: str, marks: Sequence[float] = (), bins: int = 32
) -> str:
    """
    Draw a histogram as an SVG element.

    Args:
        series: name, CSS color and values of each series. Each is normalized to its number of values; several are drawn
            on top of each other.
        title: the quantity shown.
        unit: unit of the values.
        marks: values at which to draw a dashed line. Defaults to ``()``.
        bins: maximum number of bars. Defaults to 32.
    """
    values = np.concatenate([values for _, _, values in series])
    low, high, bins = _bin_range(values, bins)
    shares = [np.histogram(part, bins, (low, high))[0] / max(len(part), 1) for _, _, part in series]
    top = max(share.max() for share in shares)
    opacity = 1 if len(series) == 1 else 0.55
    elements = [f'<text x="{LEFT}" y="14" class="title">{escape(title)}</text>']
    for (_, color, _), share in zip(series, shares):
        elements += _bars(share / top * BAR_HEIGHT, color, opacity)
    elements.append(f'<line x1="{LEFT}" y1="{BASE}" x2="{RIGHT}" y2="{BASE}" stroke="#888"/>')
    for mark in marks:
        if low <= mark <= high:
            x = LEFT + (mark - low) / (high - low) * (RIGHT - LEFT)
            elements.append(
                f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{BASE}" stroke="#333" stroke-dasharray="3 3"/>'
            )
    elements += [
        f'<text x="{LEFT}" y="{BASE + 14}">{values.min():.4g}</text>',
        f'<text x="{WIDTH / 2}" y="{BASE + 14}" text-anchor="middle">{escape(unit)}</text>',
        f'<text x="{RIGHT}" y="{BASE + 14}" text-anchor="end">{values.max():.4g}</text>',
    ]
    elements += _legend(series) if len(series) > 1 else [_text(LEFT, f"median {np.median(values):.4g}")]
    label = escape(f"histogram: {title}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(elements)}</svg>'


def _bin_range(values: np.ndarray, bins: int) -> tuple[float, float, int]:
    """Return lowest edge, highest edge and number of bars; for integers the bar width is an integer, to avoid gaps."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):  # one value: a bar in the middle
        margin = max(abs(low) * 0.05, 0.5)
        return low - margin, high + margin, bins | 1
    if (values == np.rint(values)).all():
        step = -(-(high - low + 1) // bins)
        bins = int(-(-(high - low + 1) // step))
        return low - 0.5, low - 0.5 + bins * step, bins
    return low, high, bins


def _bars(heights: np.ndarray, color: str, opacity: float) -> list[str]:
    step = (RIGHT - LEFT) / len(heights)
    return [
        f'<rect x="{LEFT + i * step:.1f}" y="{BASE - height:.1f}" width="{step - 0.6:.1f}" height="{height:.1f}" '
        f'fill="{color}" fill-opacity="{opacity}"/>'
        for i, height in enumerate(heights)
        if height
    ]


def _legend(series: Sequence[tuple[str, str, np.ndarray]]) -> list[str]:
    elements = []
    for i, (name, color, _) in enumerate(series):
        x = LEFT + 140 * i
        elements.append(f'<rect x="{x}" y="{BASE + 21}" width="10" height="10" fill="{color}" fill-opacity="0.7"/>')
        elements.append(_text(x + 14, name))
    return elements


def _text(x: int, text: str) -> str:
    return f'<text x="{x}" y="{BASE + 30}">{escape(text)}</text>'
