"""PNG and TIFF files as images of one slice, and class maps in these formats; ``io`` is what calls this.

A picture has the axes ``(X, Y, Z)`` of a NIfTI file: X from left to right, Y from top to bottom, and one slice. Its
grid has no unit of length, so that its pixels are taken for 1 mm and nothing is resampled, with X to the left of a
patient and Y to the back, as ITK reads pictures. Colors are channels.

MONAI's ``PILReader`` reads PNG, but turns 16-bit colors into 8-bit ones, as Pillow does, and shows palettes as values.
TIFF is read with tifffile, since Pillow has no 16-bit colors and no 32-bit channels.
"""

from __future__ import annotations

import importlib.util
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["AFFINE", "PICTURES", "has_palette", "is_picture", "read_picture", "read_text", "write_picture"]

PICTURES = (".png", ".tif", ".tiff")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
PNG_HEADER = 26  # bytes, of which the last two are the bits of a value and the kind of color
PNG_COLORS = (2, 6)  # with and without transparency
TEXT = "Description"  # of the texts in a PNG, the one that says who wrote it


def is_picture(path: str | PathLike) -> bool:
    """Return whether a file name has the ending of a picture."""
    return str(path).lower().endswith(PICTURES)


def read_picture(path: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Read a picture.

    Returns:
        the values ``(X, Y, 1, C)``, as they are stored, of a palette its indices; and the affine ``(4, 4)``.

    Raises:
        ValueError: if the file has several pages or 16-bit colors as PNG, or a package is missing, naming the file.
        Exception: those of Pillow and tifffile, if the file cannot be read.
    """
    _require_package(path)
    values = _read_png(path) if _ending(path) == ".png" else _read_tiff(path)
    values = values.astype(np.uint8) if values.dtype == bool else values
    values = values if values.ndim == 3 else values[..., None]
    return values.swapaxes(0, 1)[:, :, None], AFFINE.copy()


def write_picture(labels: np.ndarray, path: str | PathLike, target: str | PathLike, description: str) -> None:
    """
    Write class indices as a picture in gray: 8 bits if they fit, else 16.

    Args:
        labels: non-negative integers ``(X, Y, 1)``.
        path: the file, for its format and for messages.
        target: where it is written now.
        description: an ASCII text in it, see :py:func:`read_text`.

    Raises:
        ValueError: if there are several slices, or a package is missing.
    """
    _require_package(path)
    if labels.ndim != 3 or labels.shape[2] != 1:
        raise ValueError(f"{path}: a picture has one slice, got class indices of shape {labels.shape}.")
    values = np.ascontiguousarray(labels[:, :, 0].T.astype(np.uint8 if labels.max() <= 255 else np.uint16))
    if _ending(path) == ".png":
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        texts.add_text(TEXT, description)
        Image.fromarray(values).save(target, format="PNG", pnginfo=texts)
    else:
        import tifffile

        tifffile.imwrite(
            target, values, description=description, compression="zlib", photometric="minisblack", metadata=None
        )


def read_text(path: str | PathLike) -> str:
    """Return the text in a picture that says who wrote it, or an empty text; errors as for :py:func:`read_picture`."""
    _require_package(path)
    if _ending(path) == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            return str(picture.info.get(TEXT, ""))
    import tifffile

    with tifffile.TiffFile(path) as file:
        return str(file.pages.first.description)


def has_palette(path: str | PathLike) -> bool:
    """Return whether a file is a PNG whose values are numbers of colors, as label maps may be but images may not."""
    if _ending(path) != ".png":
        return False
    try:
        return Path(path).read_bytes()[PNG_HEADER - 1] == 3
    except (OSError, IndexError):
        return False


def _read_png(path: str | PathLike) -> np.ndarray:
    from PIL import Image

    with open(path, "rb") as file:
        *_, bits, kind = file.read(PNG_HEADER).ljust(PNG_HEADER)
    if bits == 16 and kind in PNG_COLORS:
        raise ValueError(f"{path}: has 16-bit colors, which are read from TIFF only; store it as TIFF.")
    with Image.open(path) as picture:
        return np.asarray(picture)


def _read_tiff(path: str | PathLike) -> np.ndarray:
    """Return the values ``(Y, X)`` or ``(Y, X, C)``."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        kept: list[Any] = [axis for axis, size in zip(series.axes, series.shape) if axis in "YX" or size > 1]
        channels = [axis for axis in kept if axis in "SC"]
        if len(file.series) > 1 or sorted(kept) != sorted(["Y", "X", *channels]) or len(channels) > 1:
            raise ValueError(
                f"{path}: has {len(file.pages)} pages, axes {series.axes} of {series.shape}; a TIFF must be one "
                "picture, with its channels; store a volume as NIfTI."
            )
        values = series.asarray().squeeze(
            tuple(i for i, (axis, size) in enumerate(zip(series.axes, series.shape)) if axis not in "YX" and size == 1)
        )
    return np.moveaxis(values, [kept.index(axis) for axis in ("Y", "X")], [0, 1])


def _ending(path: str | PathLike) -> str:
    return Path(path).suffix.lower()


def _require_package(path: str | PathLike) -> None:
    if _ending(path) != ".png" and importlib.util.find_spec("tifffile") is None:
        raise ValueError(f"{path}: reading and writing TIFF needs a package: pip install tifffile")
