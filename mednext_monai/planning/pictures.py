"""Pictures of the data set for the report: slices with the label drawn on them (PNG), and histograms (SVG).

Everything is returned as text that stands inside an HTML page, so that the page is one file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw

__all__ = ["CLASS_COLORS", "histogram", "overlay"]

CLASS_COLORS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#00a5b5",
    "#f032e6",
    "#8a9a00",
    "#9a6324",
    "#808000",
)
HEIGHT = 220  # pixels of a slice
PLANES = (("sagittal", 0, "AP", "SI"), ("coronal", 1, "RL", "SI"), ("axial", 2, "RL", "AP"))


def class_color(value: int) -> str:
    """Return the colour of a foreground class; the ten colours repeat."""
    return CLASS_COLORS[(value - 1) % len(CLASS_COLORS)]


def overlay(image: np.ndarray, label: np.ndarray, affine: np.ndarray, window: tuple[float, float]) -> list[str]:
    """
    Draw three orthogonal slices, each where it shows the most foreground, with the label in colour.

    The volume is turned to the nearest axes of the body and the letters say which side is which: right is on the left,
    as radiologists look at it.

    Args:
        image: one channel, ``(X, Y, Z)``.
        label: integer classes, ``(X, Y, Z)``.
        affine: voxel indices to mm in RAS space, ``(4, 4)``.
        window: the intensities shown as black and as white.

    Returns:
        three ``<img>`` elements: sagittal, coronal, axial.
    """
    orientation = nib.io_orientation(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(orientation[:, 0])]
    image, label = (nib.apply_orientation(array, orientation) for array in (image, label))
    elements = []
    for name, axis, across, down in PLANES:
        foreground = np.count_nonzero(np.moveaxis(label, axis, 0).reshape(label.shape[axis], -1), axis=1)
        index = int(foreground.argmax()) if foreground.any() else label.shape[axis] // 2
        # the axes of the body grow to right, front and top; on the page the first column is right or front
        slices = [np.take(array, index, axis)[::-1, ::-1].T for array in (image, label)]
        mm = np.delete(spacing, axis)
        elements.append(_png(_draw(*slices, mm, window, across, down), f"{name} slice {index}"))
    return elements


def histogram(
    series: Sequence[tuple[str, str, np.ndarray]], title: str, unit: str, marks: Sequence[float] = (), bins: int = 32
) -> str:
    """
    Draw a histogram as SVG.

    Args:
        series: name, colour and values of each; several are scaled to the same area and drawn over each other.
        title: what is counted.
        unit: of the values.
        marks: values at which to draw a dashed line.
        bins: number of bars. Defaults to 32.
    """
    everything = np.concatenate([values for _, _, values in series])
    low, high, bins = _bins(everything, bins)
    width, height, base = 300, 150, 112
    scale = (width - 20) / (high - low)
    counts = [np.histogram(values, bins, (low, high))[0] / max(len(values), 1) for _, _, values in series]
    top = max(count.max() for count in counts)
    parts = [f'<text x="10" y="14" class="title">{escape(title)}</text>']
    step = (width - 20) / bins
    for (_, color, _), count in zip(series, counts):
        opacity = 1 if len(series) == 1 else 0.55
        for i, share in enumerate(count):
            bar = share / top * 78
            if bar:
                parts.append(
                    f'<rect x="{10 + i * step:.1f}" y="{base - bar:.1f}" width="{step - 0.6:.1f}" height="{bar:.1f}" '
                    f'fill="{color}" fill-opacity="{opacity}"/>'
                )
    parts.append(f'<line x1="10" y1="{base}" x2="{width - 10}" y2="{base}" stroke="#888"/>')
    for mark in marks:
        if low <= mark <= high:
            x = 10 + (mark - low) * scale
            parts.append(f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{base}" stroke="#333" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="10" y="{base + 14}">{everything.min():.4g}</text>')
    parts.append(f'<text x="{width / 2}" y="{base + 14}" text-anchor="middle">{escape(unit)}</text>')
    parts.append(f'<text x="{width - 10}" y="{base + 14}" text-anchor="end">{everything.max():.4g}</text>')
    if len(series) == 1:
        parts.append(f'<text x="10" y="{base + 30}">median {np.median(everything):.4g}</text>')
    else:
        x = 10
        for name, color, _ in series:
            parts.append(f'<rect x="{x}" y="{base + 21}" width="10" height="10" fill="{color}" fill-opacity="0.7"/>')
            parts.append(f'<text x="{x + 14}" y="{base + 30}">{escape(name)}</text>')
            x += 140
    label = escape(f"histogram: {title}", quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bins(values: np.ndarray, bins: int) -> tuple[float, float, int]:
    """Return lowest edge, highest edge and number of bars: whole numbers get bars of whole width, without gaps."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):  # one value: a bar in the middle
        margin = max(abs(low) * 0.05, 0.5)
        return low - margin, high + margin, bins | 1
    if (values == np.rint(values)).all():
        step = -(-(high - low + 1) // bins)
        bins = int(-(-(high - low + 1) // step))
        return low - 0.5, low - 0.5 + bins * step, bins
    return low, high, bins


def _draw(
    image: np.ndarray, label: np.ndarray, mm: np.ndarray, window: tuple[float, float], across: str, down: str
) -> Image.Image:
    """Return a slice in grey with filled and outlined classes, in true proportions; arrays are ``(rows, columns)``."""
    low, high = window
    grey = np.clip((image - low) / max(high - low, 1e-12), 0, 1) * 255
    rows, columns = label.shape
    extent = np.array([columns * mm[0], rows * mm[1]])  # mm, across and down
    size = np.maximum(np.round(extent * min(HEIGHT / extent[1], 1.6 * HEIGHT / extent[0])), 16).astype(int)
    size = tuple(size.tolist())
    canvas = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    classes = np.asarray(Image.fromarray(label.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(canvas).astype(np.float32)
    for value in np.unique(classes[classes > 0]):
        mask = classes == value
        inner = np.pad(mask, 1)
        inner = inner[2:, 1:-1] & inner[:-2, 1:-1] & inner[1:-1, 2:] & inner[1:-1, :-2]
        color = np.array([int(class_color(int(value))[i : i + 2], 16) for i in (1, 3, 5)])
        pixels[mask] = 0.75 * pixels[mask] + 0.25 * color
        pixels[mask & ~inner] = color
    canvas = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    places = ((2, height / 2, "lm"), (width - 2, height / 2, "rm"), (width / 2, 2, "ma"), (width / 2, height - 2, "md"))
    for letter, (x, y, anchor) in zip(across + down, places):
        draw.text((x, y), letter, fill="#ffe14d", anchor=anchor, stroke_width=1, stroke_fill="black", font_size=15)
    return canvas


def _png(picture: Image.Image, text: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    width, height = picture.size
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(text)}">'
