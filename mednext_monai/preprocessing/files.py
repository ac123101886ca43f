"""Reading images and labels, and writing a segmentation on the grid of the original file.

NIfTI goes through nibabel; other formats (NRRD, MHA, …) through whichever of MONAI's readers takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

__all__ = ["is_nifti", "read_grid", "read_image", "read_label", "write_segmentation"]

AFFINE_TOLERANCE = 0.1  # voxels by which corners of two files of one case may lie apart


def is_nifti(path: str | Path) -> bool:
    """Whether the file's name says NIfTI."""
    return str(path).lower().endswith((".nii", ".nii.gz"))


def read_image(paths: str | Path | Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """
    Read the image of a case.

    Args:
        paths: one file, 3-D or 4-D with the channels last, or one 3-D file per channel in the plan's order.

    Returns:
        the image, float32 ``(C, X, Y, Z)``, and its affine 4×4 (voxel index to mm).

    Raises:
        ValueError: naming the file, when it cannot be read, has other dimensions, holds infinite values, or lies on
            another grid than the first of the case.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("the case names no image file.")
    channels, first_affine = [], None
    for path in paths:
        array, affine = _read(path)
        array = _channel_first(array, path)
        if len(paths) > 1 and len(array) > 1:
            raise ValueError(f"{path}: one of {len(paths)} files of a case must have one channel, got {len(array)}.")
        if np.isinf(array).any():
            raise ValueError(f"{path}: holds infinite values.")
        if first_affine is None:
            first_affine = affine
        else:
            check_grid(path, array.shape[1:], affine, paths[0], channels[0].shape[1:], first_affine)
        channels.append(array)
    return channels[0] if len(channels) == 1 else np.concatenate(channels), first_affine


def read_label(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Read a label map, whatever number type the file stores it in.

    Returns:
        the labels, int8 when they fit, else int16, ``(X, Y, Z)``, and the affine 4×4 (voxel index to mm).

    Raises:
        ValueError: naming the file, when it cannot be read, has several channels, or holds values that are no integers
            or do not fit int16.
    """
    array, affine = _read(path)
    array = _channel_first(array, path)
    if len(array) != 1:
        raise ValueError(f"{path}: a label must have one channel, got {len(array)}.")
    array = array[0]
    wrong = array != np.rint(array)  # true for NaN
    if wrong.any():
        raise ValueError(f"{path}: {wrong.sum()} label values are no integers, the first is {array[wrong][0]}.")
    low, high = float(array.min()), float(array.max())
    if low < np.iinfo(np.int16).min or high > np.iinfo(np.int16).max:
        raise ValueError(f"{path}: label values must fit int16, got {low:g} to {high:g}.")
    return array.astype(np.int8 if low >= -128 and high <= 127 else np.int16), affine


def check_grid(
    path: str | Path,
    shape: Sequence[int],
    affine: np.ndarray,
    first_path: str | Path,
    first_shape: Sequence[int],
    first_affine: np.ndarray,
) -> None:
    """
    Check that two files of a case lie on one grid.

    Raises:
        ValueError: naming both files, when their shapes differ or a corner lies more than a tenth of a voxel elsewhere.
    """
    if tuple(shape) != tuple(first_shape):
        raise ValueError(f"{path}: has {tuple(shape)} voxels, but {first_path} has {tuple(first_shape)}.")
    corners = np.stack(np.meshgrid(*([0, count - 1] for count in shape), [1], indexing="ij"), axis=-1).reshape(-1, 4)
    apart = np.linalg.norm((corners @ (np.asarray(affine) - np.asarray(first_affine)).T)[:, :3], axis=1).max()
    if not apart <= AFFINE_TOLERANCE * np.linalg.norm(np.asarray(first_affine)[:3, :3], axis=0).min():
        raise ValueError(f"{path}: lies {apart:.3g} mm away from {first_path}; their affines must agree.")


def read_grid(paths: str | Path | Sequence[str | Path]) -> tuple[tuple[int, ...], np.ndarray]:
    """
    Shape ``(C, X, Y, Z)`` and affine of the image of a case, of NIfTI from the header alone.

    Raises:
        ValueError: naming the file, when it cannot be read or has other dimensions.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not is_nifti(paths[0]):
        image, affine = read_image(paths)
        return image.shape, affine
    file = _open_nifti(paths[0])
    shape = _spatial_and_channels(file.shape, paths[0])
    return (len(paths) if len(paths) > 1 else shape[3], *shape[:3]), file.affine


def write_segmentation(
    labels: np.ndarray, path: str | Path, like: str | Path | None = None, affine: np.ndarray | None = None
) -> None:
    """
    Write class indices as NIfTI on the grid of the original file.

    Args:
        labels: integers ``(X, Y, Z)``; stored as uint8 when they fit, else int16.
        path: file to write, ``.nii`` or ``.nii.gz``.
        like: the original image; if NIfTI, its header (orientation with its codes, units, description) is taken over.
        affine: 4×4, voxel index to mm, needed when ``like`` is not NIfTI.

    Raises:
        ValueError: when the labels' shape is not that of ``like``, there are negative labels, or no affine.
    """
    if labels.ndim != 3 or labels.min() < 0:
        raise ValueError(f"{path}: a segmentation must be 3-D without negative labels, got {labels.shape}.")
    dtype = np.uint8 if labels.max() <= 255 else np.int16
    if like is not None and is_nifti(like):
        original = _open_nifti(like)
        if original.shape[:3] != labels.shape:
            raise ValueError(f"{path}: labels have {labels.shape} voxels, but {like} has {original.shape[:3]}.")
        header = original.header.copy()
        header.set_data_shape(labels.shape)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # a display window for intensities
        image = type(original)(labels.astype(dtype), None, header)
    elif affine is not None:
        image = nibabel.Nifti1Image(labels.astype(dtype), np.asarray(affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
    else:
        raise ValueError(f"{path}: an affine is needed, since the original {like} is not NIfTI.")
    image.set_data_dtype(dtype)
    nibabel.save(image, path)


def _open_nifti(path: str | Path) -> nibabel.Nifti1Image:
    try:
        return nibabel.load(path)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Array in the file's axis order, channels last, and affine."""
    if is_nifti(path):
        file = _open_nifti(path)
        try:
            return np.asanyarray(file.dataobj), np.asarray(file.affine, dtype=np.float64)
        except Exception as error:  # truncated or damaged: gzip, zlib, OS and value errors
            raise ValueError(f"{path}: cannot be read: {error}") from error
    from monai.transforms import LoadImage  # slow to import, and needed for other formats only

    try:
        image = LoadImage(image_only=True, dtype=None)(str(path))
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    channel = image.meta.get("original_channel_dim")
    array = image.numpy() if isinstance(channel, str) or channel != channel else np.moveaxis(image.numpy(), channel, -1)
    return array, np.asarray(image.affine, dtype=np.float64)


def _spatial_and_channels(shape: Sequence[int], path: str | Path) -> tuple[int, int, int, int]:
    """Shape as X, Y, Z, C."""
    shape = tuple(int(count) for count in shape)
    if len(shape) == 5 and shape[3] == 1:  # NIfTI vector images leave the time axis at 1
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"{path}: must be 3-D, or 4-D with the channels last, got shape {shape}.")
    return shape if len(shape) == 4 else (*shape, 1)


def _channel_first(array: np.ndarray, path: str | Path) -> np.ndarray:
    """float32 ``(C, X, Y, Z)``, contiguous."""
    array = array.reshape(_spatial_and_channels(array.shape, path))
    return np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32)
