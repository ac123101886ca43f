"""DICOM series that tests write with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["AXIAL", "CORONAL", "OBLIQUE", "SAGITTAL", "normal_of", "volume", "write_enhanced", "write_series"]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
ROW = np.array([0.8, 0.48, -0.36])
COLUMN = np.cross([0.0, 0.6, 0.8], ROW)
OBLIQUE = (*ROW, *COLUMN)
ORIGIN = (-90.5, -110.25, 35.0)
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"


def volume(slices: int = 6, rows: int = 5, columns: int = 4, dtype: type = np.int16) -> np.ndarray:
    """Stored values ``(slices, rows, columns)``, each another one."""
    return np.arange(slices * rows * columns, dtype=dtype).reshape(slices, rows, columns)


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (0.75, 0.5),
    distance: float = 2.5,
    number: int | None = 1,
    uid: str | None = None,
    prefix: str = "IM",
    change: Callable[[int, object], object] | None = None,
) -> list[Path]:
    """
    Write CT images, slice ``i`` of ``stored`` at ``i * distance`` mm along the normal, and return the files.

    ``change(i, dataset)`` may edit the dataset of a slice before it is written.
    """
    from pydicom.uid import generate_uid

    stored = volume() if stored is None else stored
    uid = uid or generate_uid()
    files = []
    for i, pixels in enumerate(stored):
        image = _image(pixels, CT, uid, number)
        image.InstanceNumber = i + 1
        image.ImagePositionPatient = _texts(np.array(ORIGIN) + i * distance * normal_of(orientation))
        image.ImageOrientationPatient = _texts(orientation)
        image.PixelSpacing = list(spacing)
        image.RescaleSlope, image.RescaleIntercept = 2, -1000
        if change is not None:
            change(i, image)
        files.append(Path(folder, f"{prefix}{i:04d}"))
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        image.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(
    file: Path,
    stored: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    order: Sequence[int] | None = None,
    change: Callable[[object], object] | None = None,
) -> Path:
    """Write one multi-frame CT whose frame ``i`` is slice ``order[i]``, with slope ``1 + slice``, 2 mm apart."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    stored = volume() if stored is None else stored
    order = range(len(stored)) if order is None else order
    image = _image(stored[list(order)], ENHANCED_CT, generate_uid(), 7)
    image.InstanceNumber = 1
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.75, 0.5]
    shared.PixelMeasuresSequence[0].SliceThickness = 2
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = _texts(orientation)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for place in order:
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        position = np.array(ORIGIN) + place * 2 * normal_of(orientation)
        frame.PlanePositionSequence[0].ImagePositionPatient = _texts(position)
        frame.PixelValueTransformationSequence = [Dataset()]
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1 + place
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -5
        frame.PixelValueTransformationSequence[0].RescaleType = "HU"
        image.PerFrameFunctionalGroupsSequence.append(frame)
    if change is not None:
        change(image)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)
    return file


def _image(pixels: np.ndarray, sop_class: str, series_uid: str, number: int | None):
    """Return a dataset with pixels and what is needed beside geometry and rescaling."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = sop_class, generate_uid()
    image.file_meta.MediaStorageSOPClassUID = sop_class
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.SpecificCharacterSet = "ISO_IR 100"
    image.PatientName, image.PatientID = "Müller^Test", "P1"
    image.PatientBirthDate = image.PatientSex = image.StudyID = image.AccessionNumber = ""
    image.StudyDate, image.StudyTime, image.ReferringPhysicianName = "20260101", "120000", ""
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.4", series_uid
    image.FrameOfReferenceUID = "1.2.3.5"
    image.Modality, image.SeriesNumber, image.SeriesDescription = "CT", number, "Thorax"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.Rows, image.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        image.NumberOfFrames = len(pixels)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.PixelData = pixels.astype("<i2").tobytes()
    return image


def _texts(numbers: Sequence[float]) -> list[str]:
    """Return decimal strings, which have at most 16 characters."""
    return [f"{number:.10f}"[:16] for number in numbers]
