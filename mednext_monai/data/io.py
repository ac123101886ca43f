"""Reading and writing images: the only place in the package that does so.

NIfTI is read with nibabel; NRRD, MHA and GIPL with MONAI's readers, if ``pynrrd`` or ``itk`` is installed. Arrays keep
the axis order of the file and have a leading channel axis, ``(C, X, Y, Z)``. Importing this module imports neither
torch nor MONAI, so that worker processes start quickly. An image that is more than a file, such as a DICOM series, is
an ``ImageSource``.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Image

from ..arrays import contiguous
from ..files import atomic_path

__all__ = [
    "DICOM_HINT",
    "ENDINGS",
    "LABEL_TOLERANCE",
    "ImageSource",
    "check_grid",
    "file_ending",
    "image_paths",
    "is_dicom",
    "is_nifti",
    "is_ours",
    "nifti_like",
    "read_digest",
    "read_grid",
    "read_image",
    "read_label",
    "read_nifti",
    "read_stored",
    "strip_ending",
    "to_labels",
    "write_segmentation",
]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl.gz", ".gipl")
DICOM_HINT = "DICOM is not supported here; convert the series to one NIfTI file first, for example with dcm2niix"
MILLIMETERS = {"meter": 1000.0, "micron": 0.001}  # in a unit of length that a NIfTI header may state beside mm
# In the header of what is written, by which it is recognized; a digest may follow, after a space. 80 bytes at most.
DESCRIPTION = b"segmentation by mednext-monai"
DESCRIPTION_SIZE = 80
MAX_COMPRESSION = 1032  # of gzip: bytes for which one can stand
USUAL_COMPRESSION, LARGE = 20, 2**30  # of images; bytes from which more is looked into
AFFINE_TOLERANCE = 0.1  # voxels by which the corners of two files of a case may differ
LABEL_TOLERANCE = 1e-3  # labels stored as floating point or with a scale factor may not be exact integers

Paths = str | PathLike | Sequence[str | PathLike]


class ImageSource(PathLike):
    """An image that is read from several files, or from a part of one; the path is that of their folder."""

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """The files."""

    @abstractmethod
    def grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """Return shape ``(X, Y, Z)`` and affine, or raise a ``ValueError`` that names the image."""

    @abstractmethod
    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values ``(X, Y, Z)`` and affine, or raise a ``ValueError`` that names the image."""


def strip_ending(filename: str | PathLike, ending: str | None = None) -> str:
    """Return a file name without directory and image ending such as ``.nii.gz``: the original's case id."""
    name = Path(filename).name
    for known in ENDINGS if ending is None else (ending,):
        if name.lower().endswith(known.lower()):
            return name[: -len(known)]
    return name


def file_ending(filename: str | PathLike) -> str:
    """Return the image ending of a file name, such as ``.nii.gz``, or an empty string if it is not in ``ENDINGS``."""
    return Path(filename).name[len(strip_ending(filename)) :]


def is_nifti(path: str | PathLike) -> bool:
    """Return whether a file name has the ending of a NIfTI file."""
    return str(path).lower().endswith((".nii", ".nii.gz"))


def is_dicom(path: str | PathLike) -> bool:
    """Return whether a file is DICOM, whatever its name: it has ``DICM`` after a preamble of 128 bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def image_paths(image: Paths | None) -> list[str | PathLike]:
    """Return the files of an image that is given as one file or as a list of one file per channel."""
    if image is None:
        return []
    return [image] if isinstance(image, (str, PathLike)) else list(image)


def read_image(paths: Paths) -> tuple[np.ndarray, np.ndarray]:
    """
    Read the image of a case.

    Args:
        paths: one file, 3D or 4D with the channels last; one 3D file per channel, in order; or an ``ImageSource``.

    Returns:
        the image, float32 ``(C, X, Y, Z)``, and its affine ``(4, 4)`` from voxel index to mm in RAS space.

    Raises:
        ValueError: if a file cannot be read, has other dimensions or infinite values, or if its grid differs from that
            of the first file of the case. The message names the file.
    """
    files = image_paths(paths)
    if not files:
        raise ValueError("the case has no image file.")
    channels: list[np.ndarray] = []
    first_affine = np.eye(4)
    for path in files:
        stored, affine = read_stored(path)
        with np.errstate(over="ignore"):  # becomes infinite
            array = contiguous(stored, np.float32)
        if len(files) > 1 and len(array) > 1:
            raise ValueError(f"{path}: one of {len(files)} files of a case must have one channel, got {len(array)}.")
        if np.isinf(array).any():
            raise ValueError(f"{path}: contains infinite values.")
        if channels:
            check_grid(path, array.shape[1:], affine, files[0], channels[0].shape[1:], first_affine)
        else:
            first_affine = affine
        channels.append(array)
    return channels[0] if len(channels) == 1 else np.concatenate(channels), first_affine


def read_label(path: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Read a label map of any numeric type.

    Returns:
        the labels, int8 if they fit, else int16, ``(X, Y, Z)``, and the affine ``(4, 4)`` from voxel index to mm.

    Raises:
        ValueError: if the file cannot be read, has several channels, or has values that are not integers (within
            ``LABEL_TOLERANCE``) or do not fit int16. The message names the file.
    """
    array, affine = read_stored(path)
    if len(array) != 1:
        raise ValueError(f"{path}: a label must have one channel, got {len(array)}.")
    return to_labels(array[0], path), affine


def to_labels(values: np.ndarray, path: str | PathLike) -> np.ndarray:
    """
    Return label values as signed integers: int8 if they fit, else int16.

    Args:
        values: ``(X, Y, Z)``, any numeric type.
        path: their file, for the message.

    Raises:
        ValueError: if a value is not an integer (within ``LABEL_TOLERANCE``) or does not fit int16.
    """
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        wrong = ~(np.abs(values - rounded) <= LABEL_TOLERANCE)  # true for NaN
        if wrong.any():
            raise ValueError(f"{path}: {wrong.sum()} label values are not integers, the first is {values[wrong][0]:g}.")
        values = rounded
    low, high = float(values.min()), float(values.max())
    if low < np.iinfo(np.int16).min or high > np.iinfo(np.int16).max:
        raise ValueError(f"{path}: label values must fit int16, got {low:g} to {high:g}.")
    return contiguous(values, np.int8 if low >= -128 and high <= 127 else np.int16)


def check_grid(
    path: str | PathLike,
    shape: Sequence[int],
    affine: np.ndarray,
    first_path: str | PathLike,
    first_shape: Sequence[int],
    first_affine: np.ndarray,
) -> None:
    """
    Check that two files of a case have the same grid.

    Args:
        path: the file.
        shape: its voxels per axis, ``(X, Y, Z)``.
        affine: its affine ``(4, 4)``, voxel index to mm.
        first_path: the file to compare it with.
        first_shape: voxels per axis of that file.
        first_affine: affine of that file.

    Raises:
        ValueError: if the shapes differ or a corner differs by more than a tenth of a voxel. The message names both
            files.
    """
    if tuple(shape) != tuple(first_shape):
        raise ValueError(f"{path}: has {tuple(shape)} voxels, but {first_path} has {tuple(first_shape)}.")
    corners = np.stack(np.meshgrid(*([0, count - 1] for count in shape), [1], indexing="ij"), axis=-1).reshape(-1, 4)
    apart = np.linalg.norm((corners @ (np.asarray(affine) - np.asarray(first_affine)).T)[:, :3], axis=1).max()
    allowed = AFFINE_TOLERANCE * np.linalg.norm(np.asarray(first_affine)[:3, :3], axis=0).min()
    if not apart <= allowed:
        raise ValueError(
            f"{path}: differs from {first_path} by {apart:.3g} mm at a corner; their affines must agree to "
            f"{allowed:.3g} mm, {AFFINE_TOLERANCE} voxels."
        )


def read_grid(paths: Paths) -> tuple[tuple[int, ...], np.ndarray]:
    """
    Return shape ``(C, X, Y, Z)`` and affine of the image of a case; for NIfTI only the header is read.

    Raises:
        ValueError: if the file cannot be read or has other dimensions. The message names the file.
    """
    files = image_paths(paths)
    if isinstance(files[0], ImageSource):
        spatial, affine = files[0].grid()
        return (len(files), *spatial), affine
    if not is_nifti(files[0]):
        image, affine = read_image(files)
        return image.shape, affine
    file = _open_nifti(files[0])
    shape = _spatial_and_channels(file.shape, files[0])
    return (len(files) if len(files) > 1 else shape[3], *shape[:3]), _affine_in_mm(file)


def read_stored(path: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Read one file without changing the type of its (scaled) values.

    Returns:
        the values ``(C, X, Y, Z)``, with the axis order of the file, and the affine ``(4, 4)``, float64, from voxel
        index to mm in RAS space.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, has other dimensions or values that are not real numbers, or needs a
            package that is not installed. The message names the file.
    """
    if isinstance(path, ImageSource):
        array, affine = path.read()
    elif is_nifti(path):
        file = _open_nifti(path)
        _check_size(file, path)
        return read_nifti(file, path)
    else:
        array, affine = _read_other(path)
    array = array.reshape(_spatial_and_channels(array.shape, path))
    _refuse_other_numbers(array.dtype, path)
    return np.moveaxis(array, -1, 0), affine


def read_nifti(file: Nifti1Image, name: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Return what :py:func:`read_stored` returns of an image that nibabel has opened.

    Args:
        file: the image.
        name: its name, for messages.

    Raises:
        ValueError: as for :py:func:`read_stored`.
    """
    shape = _spatial_and_channels(file.shape, name)  # before the voxels are read
    _refuse_other_numbers(file.get_data_dtype(), name)
    try:
        array, affine = np.asanyarray(file.dataobj), _affine_in_mm(file)
    except Exception as error:  # truncated or damaged: gzip, zlib, OS and value errors
        raise ValueError(_unreadable(name, error)) from error
    _refuse_other_numbers(array.dtype, name)
    return np.moveaxis(array.reshape(shape), -1, 0), affine


def write_segmentation(
    labels: np.ndarray,
    path: str | PathLike,
    like: str | PathLike | None = None,
    affine: np.ndarray | None = None,
    digest: str | None = None,
) -> None:
    """
    Write class indices as NIfTI on the grid of their image. The file is written atomically.

    Args:
        labels: non-negative integers ``(X, Y, Z)``; uint8 and int16 are stored as they are, others as uint8 if they
            fit, else int16.
        path: the file to write, ``.nii`` or ``.nii.gz``.
        like: the image; if it is a NIfTI file, its header is copied (affines with their codes, units, ...). Defaults to
            ``None``.
        affine: ``(4, 4)``, voxel index to mm, required if ``like`` is not NIfTI. Defaults to ``None``.
        digest: what :py:func:`read_digest` returns for the file, at most 50 ASCII characters without spaces. Defaults
            to ``None``.

    Raises:
        ValueError: if the shape of ``labels`` differs from that of ``like``, a label is negative, the affine is
            missing, or the digest does not fit into the header.
    """
    description = _description(digest)
    if labels.ndim != 3 or labels.min() < 0:
        raise ValueError(f"{path}: a segmentation must be 3D without negative labels, got shape {labels.shape}.")
    dtype = labels.dtype if labels.dtype in (np.uint8, np.int16) else np.uint8 if labels.max() <= 255 else np.int16
    is_source = like is not None and is_nifti(like) and Path(like).is_file()
    if not is_source and affine is None:
        raise ValueError(f"{path}: an affine is needed, since the image {like} is not NIfTI.")
    try:
        image = nifti_like(labels.astype(dtype), like if is_source else None, affine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    image.header["descrip"] = description
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def nifti_like(
    array: np.ndarray, like: str | PathLike | Nifti1Image | None = None, affine: np.ndarray | None = None
) -> Nifti1Image:
    """
    Return a NIfTI image in memory, on the grid of another one.

    Args:
        array: ``(X, Y, Z)``, or ``(X, Y, Z, K)`` with one volume per class.
        like: a NIfTI file or image, whose header is copied (affines with their codes, units, ...). Defaults to
            ``None``.
        affine: ``(4, 4)``, voxel index to mm, required without ``like``, else not used. Defaults to ``None``.

    Raises:
        ValueError: if the spatial shape differs from that of ``like``.
    """
    if like is None:
        image = Nifti1Image(array, None)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)  # some viewers read this one
        image.header.set_xyzt_units("mm")
    else:
        original = like if isinstance(like, Nifti1Image) else _open_nifti(like)
        if original.shape[:3] != array.shape[:3]:
            name = "the image" if isinstance(like, Nifti1Image) else like
            raise ValueError(f"labels have {array.shape[:3]} voxels, but {name} has {original.shape[:3]}.")
        header = original.header.copy()
        header.set_data_shape(array.shape)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # a display window for intensities
        image = type(original)(array, original.affine, header)  # equal to that of the header, which is kept
    image.header["descrip"] = DESCRIPTION
    image.set_data_dtype(array.dtype)
    return image


def is_ours(path: str | PathLike) -> bool:
    """Return whether a file was written by :py:func:`write_segmentation`."""
    return read_digest(path) is not None


def read_digest(path: str | PathLike) -> str | None:
    """
    Return the digest that a file of :py:func:`write_segmentation` holds, which may be empty; ``None`` for any other.
    """
    try:
        description = _open_nifti(path).header["descrip"].item() if is_nifti(path) else b""
    except (ValueError, OSError):
        return None
    name, digest = description[: len(DESCRIPTION)], description[len(DESCRIPTION) :]
    return digest[1:].decode("ascii", "replace") if name == DESCRIPTION and digest[:1] in (b"", b" ") else None


def _description(digest: str | None) -> bytes:
    description = DESCRIPTION if not digest else DESCRIPTION + b" " + digest.encode("ascii")
    if len(description) > DESCRIPTION_SIZE:
        raise ValueError(f"a digest must have at most {DESCRIPTION_SIZE - len(DESCRIPTION) - 1} characters: {digest}.")
    return description


def _open_nifti(path: str | PathLike) -> Nifti1Image:
    _check_exists(path)
    try:
        return nibabel.load(path)  # type: ignore[return-value]  # the stub names the base class of all formats
    except Exception as error:  # nibabel, gzip and zlib raise different errors for a damaged file
        raise ValueError(_unreadable(path, error)) from error


def _check_size(file: Nifti1Image, path: str | PathLike) -> None:
    """Refuse a header that states more voxels than the file has; nibabel fills memory before it reads them."""
    values: Any = file.dataobj
    stated = int(values.offset) + math.prod(map(int, values.shape)) * values.dtype.itemsize
    size = Path(path).stat().st_size
    if str(path).lower().endswith(".gz"):
        is_usual = stated <= max(LARGE, USUAL_COMPRESSION * size)
        size = MAX_COMPRESSION * size if is_usual or stated > MAX_COMPRESSION * size else _unpacked_size(path, stated)
    if stated > size:
        raise ValueError(
            f"{path}: cannot be read as an image: its header states {stated} bytes, {' x '.join(map(str, file.shape))} "
            f"voxels, of which there are at most {size}; the file is truncated or damaged."
        )


def _unpacked_size(path: str | PathLike, enough: int) -> int:
    """Return the number of bytes in a gzip file, or less if there are ``enough``."""
    size = 0
    try:
        with gzip.open(path) as file:
            while size < enough and (part := len(file.read(2**20))):
                size += part
    except Exception as error:  # gzip and zlib raise different errors for a damaged file
        raise ValueError(_unreadable(path, error)) from error
    return size


def _affine_in_mm(file: Nifti1Image) -> np.ndarray:
    """Return the affine from voxel index to mm, whatever unit of length the header states; none means mm."""
    affine = np.array(file.affine, dtype=np.float64)
    affine[:3] *= MILLIMETERS.get(file.header.get_xyzt_units()[0], 1.0)
    return affine


def _check_exists(path: str | PathLike) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file.")


def _unreadable(path: str | PathLike, error: Exception) -> str:
    return f"{path}: cannot be read as an image: {type(error).__name__}: {error}"


def _read_other(path: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a format that MONAI's readers support: array with the file's axis order, channels last, and affine."""
    _check_exists(path)
    # ITK would read one slice of a series as the volume.
    if is_dicom(path) or str(path).lower().endswith((".dcm", ".dicom")):
        raise ValueError(f"{path}: {DICOM_HINT}.")
    from monai.data import ImageReader, ITKReader, NrrdReader  # slow to import, only needed for these formats

    is_nrrd = str(path).lower().endswith(".nrrd")
    if is_nrrd and importlib.util.find_spec("nrrd"):
        reader: ImageReader = NrrdReader()
    elif importlib.util.find_spec("itk"):
        reader = ITKReader()
    else:
        needed = "pip install pynrrd (or itk)" if is_nrrd else "pip install itk"
        raise ValueError(f"{path}: reading {file_ending(path) or Path(path).suffix} files needs a package: {needed}")
    try:
        array, meta = reader.get_data(reader.read(str(path)))
    except Exception as error:  # depends on the library of the reader
        raise ValueError(_unreadable(path, error)) from error
    channel = meta.get("original_channel_dim", "no_channel")
    if not isinstance(channel, str) and not np.isnan(channel):
        array = np.moveaxis(array, int(channel), -1)
    return array, np.asarray(meta["affine"], dtype=np.float64)


def _spatial_and_channels(shape: Sequence[int], path: str | PathLike) -> tuple[int, int, int, int]:
    """Return the shape as X, Y, Z, C."""
    shape = tuple(int(count) for count in shape)
    if len(shape) == 5 and shape[3] == 1:  # NIfTI vector images leave the time axis at 1
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"{path}: must be a 3D volume, or 4D with the channels last, got shape {shape}.")
    x, y, z = shape[:3]
    return x, y, z, shape[3] if len(shape) == 4 else 1


def _refuse_other_numbers(dtype: np.dtype, path: str | PathLike) -> None:
    if dtype.names is not None:
        raise ValueError(f"{path}: contains colors ({', '.join(dtype.names)}); store each channel as its own volume.")
    if dtype.kind not in "biuf":
        raise ValueError(f"{path}: contains values of type {dtype}; expected real numbers.")
