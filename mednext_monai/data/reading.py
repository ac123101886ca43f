"""Reading one image file into an array and an affine, with MONAI's readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import ITKReader, NibabelReader, NrrdReader
from monai.utils import optional_import

__all__ = ["read_image"]


def _reader(path: Path) -> NibabelReader | NrrdReader | ITKReader:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return NibabelReader()
    if name.endswith(".nrrd") and optional_import("nrrd")[1]:
        return NrrdReader()
    if not optional_import("itk")[1]:
        needed = "pip install pynrrd (or itk)" if name.endswith(".nrrd") else "pip install itk"
        raise ValueError(f"reading {path.suffix} files needs another package: {needed}")
    return ITKReader()


def read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Read an image file.

    Args:
        path: a file that MONAI reads: ``.nii``, ``.nii.gz``, and with pynrrd or ITK installed NRRD, with ITK MHA.

    Returns:
        the voxel values in float32, ``(C, X, Y, Z)`` in the file's axis order, and the affine ``(4, 4)`` from voxel
        indices to millimetres in RAS space.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file cannot be read, a package to read it is missing, or it is no volume.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError("no such file")
    reader = _reader(path)
    try:
        array, meta = reader.get_data(reader.read(str(path)))
    except Exception as e:  # readers raise whatever their libraries do
        raise ValueError(f"cannot be read: {str(e).strip() or type(e).__name__}") from e
    channel = meta.get("original_channel_dim", "no_channel")
    if isinstance(channel, str) or np.isnan(channel):
        array = array[None]
    else:
        array = np.moveaxis(array, int(channel), 0)
    if array.ndim != 4:
        raise ValueError(f"is no volume: expected three spatial axes, got shape {tuple(array.shape[1:])}")
    return np.ascontiguousarray(array, dtype=np.float32), np.asarray(meta["affine"], dtype=np.float64)
