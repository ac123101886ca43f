"""A picture of a scan and its segmentation: three orthogonal slices, so that a result can be seen at a glance."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, center_of_mass

from .files import write_atomically

__all__ = ["draw_overlay", "save_overlay"]

# A palette that colour-blind people can tell apart (Okabe and Ito), repeated when there are more classes.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
OPACITY = 0.4
WINDOW = (0.5, 99.5)  # percentiles of the non-zero voxels
# Each plane of a volume with axes (right, anterior, superior): the axis it cuts, what is at its left and at its top.
PLANES = (("axial", 2, "R", "A"), ("coronal", 1, "R", "S"), ("sagittal", 0, "A", "S"))
TILE = 280  # pixels, the longest edge of the volume
MARGIN = 12  # pixels
LINE = 24  # pixels, height of a line of text
BACKGROUND, INK = (18, 18, 18), (235, 235, 235)


def save_overlay(
    image_path: str | Path,
    label_path: str | Path,
    output_png: str | Path,
    reference_path: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
) -> Path:
    """
    Draw slices through the centre of mass of a segmentation: the image, the segmentation over it, the reference.

    Axial, coronal and sagittal slices are those of the volume's own grid that are nearest to these planes, seen as
    radiologists do (the patient's right at the left), in true proportions. Segmentations are transparent with a
    contour; a reference is drawn in a column of its own.

    Args:
        image_path: a NIfTI file; of several channels the first is drawn.
        label_path: the segmentation on the image's grid, whole numbers, 0 for background.
        output_png: the file to write.
        reference_path: another segmentation to compare with, on the same grid. Defaults to ``None``.
        labels: names of the classes for the legend. Defaults to ``None``: "class 1", ....

    Returns:
        The file written.

    Raises:
        FileNotFoundError: when a file does not exist.
        ValueError: when a file cannot be read or the grids differ.
    """
    image, spacing, shape = _load(image_path)
    columns = {"segmentation": _load_label(label_path, image_path, shape)}
    if reference_path is not None:
        columns["reference"] = _load_label(reference_path, image_path, shape)
    name = Path(image_path).name.removesuffix(".gz").removesuffix(".nii")
    picture = draw_overlay(image, columns, spacing, name, labels)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(Path(output_png), buffer.getvalue())
    return Path(output_png)


def draw_overlay(
    image: np.ndarray,
    columns: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    name: str,
    labels: Mapping[int, str] | None = None,
) -> Image.Image:
    """
    Draw what ``save_overlay`` writes, from arrays: slices through the centre of mass of the first segmentation.

    Args:
        image: ``(X, Y, Z)``, its axes to the patient's right, front and top.
        columns: segmentations like the image, whole numbers, by what is written above them.
        spacing: mm between voxels along the three axes.
        name: written above everything.
        labels: names of the classes for the legend. Defaults to ``None``: "class 1", ....
    """
    image = _windowed(image)
    place = _centre(next(iter(columns.values())))
    rows = [
        [_tile(image, label, axis, place[axis], spacing, marks) for label in (None, *columns.values())]
        for _, axis, *marks in PLANES
    ]
    values = sorted({int(v) for label in columns.values() for v in np.unique(label)} - {0})
    legend = [(_colour(value), (labels or {}).get(value, f"class {value}")) for value in values]
    return _compose(rows, name, ["image", *columns], legend)


def _load(path: str | Path) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return the array, its axes turned to right, anterior, superior; its spacing in mm; the shape in the file."""
    try:
        nifti = nib.load(path)
        shape = nifti.shape[:3]
        if len(shape) != 3:
            raise ValueError(f"it has shape {nifti.shape}, expected three spatial axes")
        nifti = nib.as_closest_canonical(nifti)
        array = np.asanyarray(nifti.dataobj)
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own for a broken file
        raise ValueError(f"{path}: cannot be drawn: {type(error).__name__}: {error}") from error
    array = array.reshape(array.shape[:3] + (-1,))[..., 0]
    return array, np.array(nib.affines.voxel_sizes(nifti.affine)), shape


def _load_label(path: str | Path, image_path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    array, _, own_shape = _load(path)
    if own_shape != shape:
        raise ValueError(f"{path}: has shape {own_shape}, the image {image_path} {shape}; the grids must be the same.")
    return array


def _windowed(image: np.ndarray) -> np.ndarray:
    """Return grey values 0 to 255."""
    image = np.nan_to_num(image.astype(np.float32))
    shown = image[image != 0]
    low, high = np.percentile(shown, WINDOW) if shown.size else (0.0, 1.0)
    low = min(low, 0.0) if image.min() >= 0 else low  # keeps a background of zeros black
    return (255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _centre(label: np.ndarray) -> list[int]:
    if not label.any():
        return [size // 2 for size in label.shape]
    return [int(round(position)) for position in center_of_mass(label != 0)]


def _colour(value: int) -> tuple[int, int, int]:
    return COLOURS[(value - 1) % len(COLOURS)]


def _tile(
    image: np.ndarray,
    label: np.ndarray | None,
    axis: int,
    index: int,
    spacing: Sequence[float],
    marks: Sequence[str],
) -> Image.Image:
    """Draw one slice; ``marks`` are the letters of the directions at its left and its top."""
    scale = TILE / (np.array(image.shape) * np.array(spacing)).max()  # pixels per mm, the same for all slices
    horizontal, vertical = (a for a in range(3) if a != axis)
    size = tuple(max(1, int(round(image.shape[a] * spacing[a] * scale))) for a in (horizontal, vertical))

    def cut(array: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        # Columns first in numpy, rows first in a picture; flipped, since axes run to the right, anterior, superior.
        plane = np.ascontiguousarray(array.take(index, axis).T[::-1, ::-1])
        return np.asarray(Image.fromarray(plane).resize(size, resample))

    picture = np.repeat(cut(image, Image.Resampling.BICUBIC)[..., None], 3, axis=2).astype(np.float32)
    if label is not None:
        # No more than 255 classes are drawn apart, and not in more colours than there are anyway.
        classes = cut(np.clip(label, 0, 255).astype(np.uint8), Image.Resampling.NEAREST)
        for value in np.unique(classes[classes > 0]).tolist():
            mask = classes == value
            picture[mask] = (1 - OPACITY) * picture[mask] + OPACITY * np.array(_colour(value))
            picture[mask & ~binary_erosion(mask, iterations=2, border_value=1)] = _colour(value)
    tile = Image.fromarray(picture.astype(np.uint8))
    draw = ImageDraw.Draw(tile)
    draw.text((3, size[1] / 2), marks[0], fill=INK, font=_font(), anchor="lm")
    draw.text((size[0] / 2, 3), marks[1], fill=INK, font=_font(), anchor="mt")
    return tile


def _compose(
    rows: list[list[Image.Image]], name: str, columns: list[str], legend: list[tuple[tuple[int, int, int], str]]
) -> Image.Image:
    """Put the tiles into a table with the case's name above and the legend below."""
    gutter = LINE + MARGIN  # for the planes' names, written upwards
    widths = [max(row[i].width for row in rows) for i in range(len(columns))]
    heights = [row[0].height for row in rows]
    entries = _wrapped(legend, gutter + sum(widths) + MARGIN * (len(widths) - 1))
    width = gutter + sum(widths) + MARGIN * (len(widths) + 1)
    top = MARGIN + 2 * LINE
    height = top + sum(heights) + MARGIN * len(heights) + LINE * len(entries) + MARGIN
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((gutter, MARGIN), name, fill=INK, font=_font(17))
    y = top
    for (plane, *_), row, tile_height in zip(PLANES, rows, heights):
        x = gutter
        for heading, tile, tile_width in zip(columns, row, widths):
            if y == top:
                draw.text((x + tile_width / 2, top - 9), heading, fill=INK, font=_font(), anchor="ms")
            picture.paste(tile, (x + (tile_width - tile.width) // 2, y))
            x += tile_width + MARGIN
        picture.paste(_upwards(plane, tile_height), (MARGIN // 2, y))
        y += tile_height + MARGIN
    for line in entries:
        for x, colour, text in line:
            draw.rectangle((gutter + x, y + 4, gutter + x + 13, y + 17), fill=colour)
            draw.text((gutter + x + 20, y + 10), text, fill=INK, font=_font(), anchor="lm")
        y += LINE
    return picture


def _wrapped(legend: list[tuple[tuple[int, int, int], str]], width: int) -> list[list[tuple[int, tuple, str]]]:
    """Lay the legend out in lines of ``(x, colour, text)``."""
    lines, x = [[]], 0
    for colour, text in legend:
        needed = int(_font().getlength(text)) + 42
        if x > 0 and x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, text))
        x += needed
    return lines


def _upwards(text: str, length: int) -> Image.Image:
    strip = Image.new("RGB", (length, LINE), BACKGROUND)
    ImageDraw.Draw(strip).text((length / 2, LINE / 2), text, fill=INK, font=_font(), anchor="mm")
    return strip.rotate(90, expand=True)


def _font(size: int = 14) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
