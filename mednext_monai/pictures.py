"""Pictures of a volume and its segmentation: orthogonal slices in true proportions, with one palette for all of them.

Planes are those of the volume's own grid that are nearest to axial, coronal and sagittal, seen as radiologists do: the
patient's right is on the left. Classes are transparent with a contour.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, center_of_mass

from .data.io import read_image, read_label
from .files import write_atomically
from .preprocessing.geometry import reorient, spacing_of

__all__ = ["class_color", "display_window", "draw_overlay", "draw_slices", "save_overlay"]

Color = tuple[int, int, int]
Legend = list[tuple[Color, str]]


class Plane(NamedTuple):
    """A plane of a volume whose axes point to the patient's right, anterior and superior (RAS)."""

    name: str
    axis: int  # the axis perpendicular to it
    letters: str  # directions on the left, right, top and bottom


# Okabe and Ito's palette, which color-blind people can tell apart; it repeats if there are more classes.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
OPACITY = 0.4
PERCENTILES = (0.5, 99.5)  # of the nonzero voxels: shown as black and white
PLANES = (Plane("axial", 2, "RLAP"), Plane("coronal", 1, "RLSI"), Plane("sagittal", 0, "APSI"))
TILE = 280  # pixels, longest edge of the volume
MARGIN = 12  # pixels
LINE = 24  # pixels, height of a line of text
GUTTER = LINE + MARGIN  # pixels, on the left, for the names of the planes
SMALL_FILE_COLORS = 128
BACKGROUND, INK = (18, 18, 18), (235, 235, 235)


def save_overlay(
    image_path: str | Path,
    label_path: str | Path,
    output_png: str | Path,
    reference_path: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
    width: int | None = None,
) -> Path:
    """
    Draw slices through the center of mass of a segmentation: the image, the segmentation over it, the reference.

    Args:
        image_path: image file; the first channel is drawn.
        label_path: segmentation on the image's grid, integers, 0 for background.
        output_png: PNG file to write.
        reference_path: another segmentation on the same grid, drawn in a column of its own. Defaults to ``None``.
        labels: names of the classes for the legend. Defaults to ``None``: "class 1", "class 2", ....
        width: largest width of the picture in pixels; colors are then reduced to 128, for a small file. Defaults to
            ``None``: 280 pixels for the longest edge of the volume, all colors.

    Returns:
        The path of the PNG file.

    Raises:
        ValueError: if a file cannot be read or the grids differ.
    """
    volume, affine = read_image(image_path)
    columns = {}
    for heading, path in (("segmentation", label_path), ("reference", reference_path)):
        if path is None:
            continue
        label, label_affine = read_label(path)
        if label.shape != volume.shape[1:]:
            raise ValueError(
                f"{path}: has shape {label.shape}, but the image {image_path} has {volume.shape[1:]}; "
                "both must be on the same grid."
            )
        columns[heading] = reorient(label[None], label_affine, "RAS")[0][0]
    volume, affine = reorient(volume[:1], affine, "RAS")
    name = Path(image_path).name.removesuffix(".gz").removesuffix(".nii")
    picture = draw_overlay(volume[0], columns, spacing_of(affine), name, labels, width)
    if width is not None:
        # Maximum coverage keeps the few colors of the classes among the many shades of gray.
        picture = picture.quantize(SMALL_FILE_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_atomically(output_png, buffer.getvalue())
    return Path(output_png)


def draw_overlay(
    image: np.ndarray,
    columns: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    name: str,
    labels: Mapping[int, str] | None = None,
    width: int | None = None,
) -> Image.Image:
    """
    Draw what ``save_overlay`` writes, from arrays: slices through the center of mass of the first segmentation.

    Args:
        image: ``(X, Y, Z)`` in RAS orientation.
        columns: integer segmentations of the image's shape, by the heading of their column.
        spacing: mm between voxels along the three axes.
        name: title of the picture.
        labels: names of the classes for the legend. Defaults to ``None``: "class 1", "class 2", ....
        width: largest width of the picture in pixels. Defaults to ``None``: 280 pixels for the longest edge of the
            volume.
    """
    extent = np.multiply(image.shape, spacing)
    scale = TILE / extent.max()
    if width is not None:
        tiles = len(columns) + 1
        scale = (width - GUTTER - MARGIN * (tiles + 1)) / tiles / extent[:2].max()
    window = display_window(image)
    center = _center(next(iter(columns.values())))
    rows = [
        [
            _draw_plane(image, label, plane, center[plane.axis], spacing, window, scale)
            for label in (None, *columns.values())
        ]
        for plane in _planes(image.shape)
    ]
    values = sorted({int(value) for label in columns.values() for value in np.unique(label)} - {0})
    legend = [(class_color(value), (labels or {}).get(value, f"class {value}")) for value in values]
    return _compose(rows, name, ["image", *columns], legend)


def draw_slices(
    image: np.ndarray, label: np.ndarray, spacing: Sequence[float], window: tuple[float, float]
) -> dict[str, Image.Image]:
    """
    Draw an axial, a coronal and a sagittal slice, each where it shows the most foreground; of a single slice only this.

    Args:
        image: ``(X, Y, Z)`` in RAS orientation.
        label: integer segmentation of the same shape, 0 for background.
        spacing: mm between voxels along the three axes.
        window: intensities shown as black and white.

    Returns:
        The pictures, by a name such as "axial slice 12".
    """
    scale = TILE / np.multiply(image.shape, spacing).max()
    pictures = {}
    for plane in _planes(image.shape):
        foreground = np.count_nonzero(np.moveaxis(label, plane.axis, 0), axis=(1, 2))
        index = int(foreground.argmax()) if foreground.any() else len(foreground) // 2
        pictures[f"{plane.name} slice {index}"] = _draw_plane(image, label, plane, index, spacing, window, scale)
    return pictures


def display_window(image: np.ndarray) -> tuple[float, float]:
    """Return the intensities to show as black and white: percentiles 0.5 and 99.5 of the nonzero voxels."""
    image = np.nan_to_num(image.astype(np.float32))
    shown = image[image != 0]
    low, high = np.percentile(shown, PERCENTILES).tolist() if shown.size else (0.0, 1.0)
    if image.min() >= 0:
        low = 0.0  # keeps a background of zeros black
    return low, high


def class_color(value: int) -> Color:
    """Return the RGB color of a foreground class."""
    return COLORS[(value - 1) % len(COLORS)]


def _planes(shape: Sequence[int]) -> list[Plane]:
    """Return the planes in which a volume is drawn; that of a single slice is one."""
    return [plane for plane in PLANES if shape[plane.axis] == 1][:1] or list(PLANES)


def _center(label: np.ndarray) -> list[int]:
    if not label.any():
        return [size // 2 for size in label.shape]
    return [round(position) for position in center_of_mass(label != 0)]


def _draw_plane(
    image: np.ndarray,
    label: np.ndarray | None,
    plane: Plane,
    index: int,
    spacing: Sequence[float],
    window: tuple[float, float],
    scale: float,
) -> Image.Image:
    """Draw one slice of a volume with ``scale`` pixels per mm; without ``label``, the image alone."""
    size = [max(1, round(n * mm * scale)) for n, mm in zip(image.shape, spacing)]
    del size[plane.axis]

    def cut(array: np.ndarray) -> np.ndarray:
        # Arrays have the horizontal axis first, pictures the vertical one, from top to bottom.
        return array.take(index, plane.axis).T[::-1, ::-1]

    low, high = window
    gray = 255 * np.clip((np.nan_to_num(cut(image).astype(np.float32)) - low) / max(high - low, 1e-6), 0, 1)
    resized = Image.fromarray(gray.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(resized.convert("RGB")).astype(np.float32)
    if label is not None:
        classes = np.clip(cut(label).astype(np.int32), 0, 255).astype(np.uint8)  # classes above 255 share a color
        classes = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
        for value in np.unique(classes[classes > 0]).tolist():
            mask = classes == value
            pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * np.array(class_color(value))
            pixels[mask & ~binary_erosion(mask, iterations=2, border_value=1)] = class_color(value)
    picture = Image.fromarray(pixels.astype(np.uint8))
    _draw_letters(picture, plane.letters)
    return picture


def _draw_letters(picture: Image.Image, letters: str) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    places = ((3, height / 2, "lm"), (width - 3, height / 2, "rm"), (width / 2, 3, "mt"), (width / 2, height - 3, "mb"))
    for letter, (x, y, anchor) in zip(letters, places):
        draw.text((x, y), letter, fill=INK, font=_font(), anchor=anchor, stroke_width=1, stroke_fill="black")


def _compose(rows: list[list[Image.Image]], name: str, headings: list[str], legend: Legend) -> Image.Image:
    """Arrange the slices, a row for a plane, with the title above and the legend below."""
    widths = [max(row[i].width for row in rows) for i in range(len(headings))]
    heights = [row[0].height for row in rows]
    lines = _wrap(legend, sum(widths) + MARGIN * (len(widths) - 1))
    width = GUTTER + sum(widths) + MARGIN * (len(widths) + 1)
    top = MARGIN + 2 * LINE
    height = top + sum(heights) + MARGIN * len(heights) + LINE * len(lines) + MARGIN
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((GUTTER, MARGIN), name, fill=INK, font=_font(17))
    for i, heading in enumerate(headings):
        x = GUTTER + sum(widths[:i]) + MARGIN * i + widths[i] / 2
        draw.text((x, top - 9), heading, fill=INK, font=_font(), anchor="ms")
    y = top
    for plane, row, row_height in zip(PLANES, rows, heights):
        x = GUTTER
        for tile, column_width in zip(row, widths):
            picture.paste(tile, (x + (column_width - tile.width) // 2, y))
            x += column_width + MARGIN
        picture.paste(_vertical_text(plane.name, row_height), (MARGIN // 2, y))
        y += row_height + MARGIN
    for line in lines:
        for x, color, text in line:
            draw.rectangle((GUTTER + x, y + 4, GUTTER + x + 13, y + 17), fill=color)
            draw.text((GUTTER + x + 20, y + 10), text, fill=INK, font=_font(), anchor="lm")
        y += LINE
    return picture


def _wrap(legend: Legend, width: int) -> list[list[tuple[int, Color, str]]]:
    """Break the legend into lines of ``(x, color, text)``."""
    lines: list[list[tuple[int, Color, str]]] = [[]]
    x = 0
    for color, text in legend:
        needed = int(_font().getlength(text)) + 42
        if x > 0 and x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((x, color, text))
        x += needed
    return lines


def _vertical_text(text: str, length: int) -> Image.Image:
    strip = Image.new("RGB", (length, LINE), BACKGROUND)
    ImageDraw.Draw(strip).text((length / 2, LINE / 2), text, fill=INK, font=_font(), anchor="mm")
    return strip.rotate(90, expand=True)


def _font(size: int = 14) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
