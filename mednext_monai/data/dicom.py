"""A series of DICOM images as the image of a case.

The image is as ITK has it: the axes are columns, rows and slices, the last along the cross product of the other two (L,
P, S for an axial series), and the values are the rescaled ones of each slice. The affine maps a voxel to the position
that the files state, converted from DICOM's LPS to RAS. Whatever would make such an image wrong, such as missing
slices, a tilted gantry or several volumes in one series, is refused.

MONAI's ``PydicomReader`` and ``ITKReader`` sort by instance number or take the first series, and notice none of this.
Pixels are decoded by pydicom, which is imported when it is needed. ``dicom_files`` finds the series.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .io import ImageSource

__all__ = ["GEOMETRY", "MARKS", "SAME_DIRECTION", "SAME_POSITION", "DicomSeries", "Slice", "import_package"]

INSTALL = 'pip install "mednext-monai[dicom]"'
NIFTI_HINT = "convert it to NIfTI, for example with dcm2niix"
TOLERANCE = 0.1  # voxels by which a slice may be beside its place, as for the files of a case in other formats
MAX_TILT = 0.01  # shift of slices within their plane per distance; 0.6 degrees
SAME_DIRECTION = 1e-3  # between components of unit vectors
SAME_POSITION = 1e-3  # mm
# Attributes by which the volumes of one series may differ, those of enhanced multi-frame images included.
MARKS = (
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "ImageType",
    "FrameType",
    "StackID",
    "AcquisitionNumber",
    "AcquisitionTime",
)
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


class Slice(NamedTuple):
    """One image of a series, as its header describes it; ``None`` for what it does not state. Lengths are in mm."""

    file: str
    frame: int  # in a multi-frame file, from 0
    rows: int
    columns: int
    position: tuple[float, ...] | None  # of the center of the first pixel, (3,), LPS
    orientation: tuple[float, ...] | None  # direction along a row, then along a column, (6,), LPS
    spacing: tuple[float, ...] | None  # between rows, between columns
    slope: float
    intercept: float
    colors: str  # photometric interpretation
    frame_of_reference: str
    marks: tuple[str, ...]  # values of MARKS


@dataclass(frozen=True)
class DicomSeries(ImageSource):
    """
    The slices of a series that are parallel and have one matrix: the image of a case. As a path it is its folder.

    Args:
        folder: the folder of the files.
        uid: Series Instance UID.
        number: number of the series, if it has one.
        description: modality and description of the series, for messages.
        slices: the slices, sorted by their position along the normal of the plane.
    """

    folder: str
    uid: str
    number: int | None
    description: str
    slices: tuple[Slice, ...]

    def __fspath__(self) -> str:
        return self.folder

    def __str__(self) -> str:
        return f"{self.folder}: series {self.uid if self.number is None else self.number} {self.description!r}"

    @property
    def files(self) -> list[str]:
        """The files, each once, in the order of the slices."""
        return list(dict.fromkeys(one.file for one in self.slices))

    def to_json(self) -> str:
        """Return a text from which :py:meth:`from_json` makes the same series, for metadata of tensors."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DicomSeries:
        """Return the series of :py:meth:`to_json`."""
        content = json.loads(text)
        rows: list[Any] = [[tuple(v) if isinstance(v, list) else v for v in one] for one in content.pop("slices")]
        return cls(**content, slices=tuple(Slice(*row) for row in rows))

    def grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """
        Return the shape ``(X, Y, Z)``, which is columns, rows, slices, and the affine ``(4, 4)`` in mm, RAS.

        Raises:
            ValueError: if the slices are no volume, naming series, file and numbers.
        """
        _check_complete(self)
        first = self.slices[0]
        positions = np.array([one.position for one in self.slices])
        along_row, along_column, normal = _directions(self)
        _check_distances(self, positions @ normal)
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
        between_rows, between_columns = first.spacing  # type: ignore[misc]  # checked above
        _check_line(self, positions, step, normal, min(between_rows, between_columns))
        affine = np.eye(4)
        affine[:3] = np.stack([along_row * between_columns, along_column * between_rows, step, positions[0]], axis=1)
        affine[:2] *= -1  # LPS to RAS
        return (first.columns, first.rows, len(self.slices)), affine

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the rescaled values, float32 ``(X, Y, Z)``, and the affine ``(4, 4)`` in mm, RAS.

        Raises:
            ValueError: as :py:meth:`grid`, or if a file cannot be read or decoded.
        """
        shape, affine = self.grid()
        volume: np.ndarray | None = None
        places: dict[str, list[tuple[int, Slice]]] = {}
        for place, one in enumerate(self.slices):
            places.setdefault(one.file, []).append((place, one))
        for file, wanted in places.items():
            frames = _decode(self, file)
            if frames.shape[1:] != shape[1::-1] or len(frames) <= max(one.frame for _, one in wanted):
                raise ValueError(f"{self}: {file} has changed: its pixels have the shape {frames.shape}.")
            if volume is None:  # not before there are pixels of the size that the headers state
                volume = np.empty(shape[::-1], np.float32)
            for place, one in wanted:
                volume[place] = frames[one.frame] * one.slope + one.intercept
        return volume.transpose(), affine  # type: ignore[union-attr]  # there are slices


def import_package(name: str) -> Any:
    """
    Return the module of a package that DICOM needs: pydicom, or highdicom for DICOM-SEG.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"DICOM needs the package {name}, which is not installed: {INSTALL}") from error


def _check_complete(series: DicomSeries) -> None:
    """Refuse slices that lack an attribute, are in color, or differ in what a volume has once."""
    first = series.slices[0]
    for one in series.slices:
        for name, value in zip(GEOMETRY, (one.position, one.orientation, one.spacing)):
            if value is None:
                frame = f", frame {one.frame} of a multi-frame file," if one.frame else ""
                raise ValueError(f"{series}: {one.file}{frame} has no valid {name}.")
        if not one.colors.startswith("MONOCHROME"):
            raise ValueError(f"{series}: {one.file} is in color ({one.colors}); a channel has one value per voxel.")
        if one.frame_of_reference != first.frame_of_reference:
            raise ValueError(f"{series}: {first.file} and {one.file} have different frames of reference.")
        if not np.allclose(one.spacing, first.spacing, rtol=1e-3) or min(one.spacing) <= 0:  # type: ignore
            raise ValueError(
                f"{series}: the PixelSpacing of {first.file} is {first.spacing}, that of {one.file} {one.spacing}; a "
                "volume has one, above 0."
            )
    if len(series.slices) == 1:
        raise ValueError(f"{series}: has a single slice, {first.file}.")


def _directions(series: DicomSeries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit vectors along a row and along a column, and the normal, ``(3,)`` each, LPS."""
    first = series.slices[0]
    axes = np.asarray(first.orientation).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > SAME_DIRECTION:
        raise ValueError(f"{series}: ImageOrientationPatient of {first.file} is not two perpendicular unit vectors.")
    return axes[0], axes[1], np.cross(axes[0], axes[1])


def _check_distances(series: DicomSeries, along: np.ndarray) -> None:
    """Refuse slices at one position, and distances between neighbors that differ; ``along`` is sorted, in mm."""
    slices, distances = series.slices, np.diff(along)
    for i in np.flatnonzero(distances <= SAME_POSITION)[:1]:
        values = zip(MARKS, zip(*(one.marks for one in slices)), slices[i].marks, slices[i + 1].marks)
        several = [f"{name} ({', '.join(sorted(set(found))[:4])})" for name, found, a, b in values if a != b]
        raise ValueError(
            f"{series}: {slices[i].file} and {slices[i + 1].file} are both at {along[i]:.3f} mm along the normal, and "
            f"{int((distances <= SAME_POSITION).sum())} of {len(slices)} slices repeat a position. "
            + (f"It holds several volumes, which differ in {'; '.join(several[:3])}: " if several else "")
            + ("export each as a series of its own." if several else "Keep one of each.")
        )
    usual = float(np.median(distances))
    for i in np.flatnonzero(np.abs(distances - usual) > TOLERANCE * usual)[:1]:
        raise ValueError(
            f"{series}: {slices[i].file} and {slices[i + 1].file} are {distances[i]:.3f} mm apart, the usual distance "
            f"of its {len(slices)} slices is {usual:.3f} mm: slices are missing, or the spacing is uneven."
        )


def _check_line(series: DicomSeries, positions: np.ndarray, step: np.ndarray, normal: np.ndarray, pixel: float) -> None:
    """Refuse a tilted gantry, and slices beside the line from the first to the last; ``positions`` is ``(N, 3)``."""
    forward = float(step @ normal)
    aside = float(np.linalg.norm(step - forward * normal))
    if aside > MAX_TILT * forward:
        raise ValueError(
            f"{series}: each slice is shifted by {aside:.3f} mm within its plane per {forward:.3f} mm, "
            f"{np.degrees(np.arctan2(aside, forward)):.2f} degrees, from {series.slices[0].file} on: the gantry was "
            f"tilted. Undo this first: {NIFTI_HINT}."
        )
    beside = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    worst = int(beside.argmax())
    if beside[worst] > TOLERANCE * min(pixel, forward):
        raise ValueError(
            f"{series}: {series.slices[worst].file} is {beside[worst]:.3f} mm from its place on the line of evenly "
            f"spaced slices, more than {TOLERANCE} voxels."
        )


def _decode(series: DicomSeries, file: str) -> np.ndarray:
    """Return the pixels of a file, ``(frames, rows, columns)``, after its lookup table if it has one."""
    pydicom = import_package("pydicom")
    try:
        content = pydicom.dcmread(file)
        pixels = content.pixel_array
        if "ModalityLUTSequence" in content:
            pixels = pydicom.pixels.apply_modality_lut(pixels, content)
    except Exception as error:  # a decoder that is missing, a damaged file
        raise ValueError(
            f"{series}: the pixels of {file} cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return np.reshape(pixels, (-1, *pixels.shape[-2:]))
