"""Writing segmentations of DICOM series as DICOM-SEG, on the frames of the series.

highdicom does the encoding. A segmentation has one binary segment per class, which all viewers read; its numbers are
consecutive, as the standard demands, so that a class without voxels shifts the numbers of those after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from .. import __version__
from ..files import atomic_path
from .dicom import DicomSeries, import_package
from .segments import MAX_TEXT, Segment

__all__ = ["check_reference", "is_our_seg", "write_dicom_seg"]

MANUFACTURER = "mednext-monai"  # by which a file is recognized
# Attributes that must be there, if only empty; anonymous files may lack them.
COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


def check_reference(series: DicomSeries) -> None:
    """
    Check that a DICOM-SEG can refer to a series, by encoding one voxel.

    Raises:
        ValueError: if highdicom is missing, or the series lacks something, naming it.
    """
    import_package("highdicom")
    if 1 < len(series.files) < len(series.slices):
        raise ValueError(f"dicom_seg: {series} has several multi-frame files, to which one DICOM-SEG cannot refer.")
    if not series.slices[0].frame_of_reference:
        raise ValueError(f"dicom_seg: {series} has no FrameOfReferenceUID in {series.files[0]}.")
    planes = np.zeros(series.grid()[0], np.uint8).transpose()
    planes[0, 0, 0] = 1
    _encode(planes, series, [Segment(1, "test")], ("test", "test"))


def write_dicom_seg(
    labels: np.ndarray,
    series: DicomSeries,
    path: str | PathLike,
    segments: Sequence[Segment],
    algorithm: tuple[str, str] = ("MedNeXt", __version__),
) -> bool:
    """
    Write class indices as a binary DICOM-SEG on the frames of their series. The file is written atomically.

    Args:
        labels: non-negative integers ``(X, Y, Z)``: columns, rows, slices, as :py:meth:`DicomSeries.read` has them.
        series: the series.
        path: the file to write.
        segments: the classes; those without voxels are left out, and so are values of ``labels`` without segment.
        algorithm: name and version of the algorithm. Defaults to MedNeXt and the version of the package.

    Returns:
        whether a file was written: not if no segment has a voxel.

    Raises:
        ValueError: if the shape is not that of the series, or highdicom is missing or cannot refer to the series.
    """
    shape, _ = series.grid()
    if labels.shape != shape:
        raise ValueError(f"{path}: labels have {labels.shape} voxels, but {series} has {shape}.")
    planes = labels.transpose()
    found = set().union(*(np.unique(plane).tolist() for plane in planes))
    present = [one for one in segments if one.value in found]
    if not present:
        return False
    numbers = np.zeros(max(found) + 1, np.uint8 if len(present) < 256 else np.uint16)
    numbers[[one.value for one in present]] = np.arange(1, len(present) + 1)
    content = _encode(numbers[planes], series, present, algorithm)
    with atomic_path(path) as temporary:
        content.save_as(temporary)
    return True


def is_our_seg(path: str | PathLike) -> bool:
    """Return whether a file was written by :py:func:`write_dicom_seg`."""
    try:
        header = import_package("pydicom").dcmread(
            path, stop_before_pixels=True, specific_tags=["Modality", "Manufacturer"]
        )
    except Exception:  # not DICOM
        return False
    return (header.get("Modality"), header.get("Manufacturer")) == ("SEG", MANUFACTURER)


def _sources(series: DicomSeries) -> list[Any]:
    """Return the headers of the files in the order of the slices, with what a DICOM-SEG copies, if only empty."""
    headers = [import_package("pydicom").dcmread(file, stop_before_pixels=True) for file in series.files]
    first = headers[0]
    for name in COPIED:
        if name not in first or (name == "PatientSex" and first.PatientSex not in ("M", "F", "O")):
            setattr(first, name, "")
    if first.get("SliceThickness") is None:  # highdicom reads it, but here it is replaced by the distance
        first.SliceThickness = 1
    return headers


def _encode(planes: np.ndarray, series: DicomSeries, segments: Sequence[Segment], algorithm: tuple[str, str]) -> Any:
    """Return the dataset; ``planes`` is ``(Z, rows, columns)``, the numbers of the segments."""
    sources = _sources(series)
    if len(sources) == 1:  # highdicom wants all frames of a multi-frame file, in their order
        frames = np.zeros((int(sources[0].NumberOfFrames), *planes.shape[1:]), planes.dtype)
        frames[[one.frame for one in series.slices]] = planes
        planes = frames
    distance = float(np.linalg.norm(series.grid()[1][:3, 2]))
    highdicom = import_package("highdicom")
    name, version = (text[:MAX_TEXT] for text in algorithm)
    try:
        content = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=planes,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(highdicom, segments, name, version),
            series_instance_uid=highdicom.UID(),
            series_number=1000 + max(0, series.number or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=name,
            software_versions=__version__,
            device_serial_number="1",
            series_description=f"Segmentation by {name}"[:MAX_TEXT],
            pixel_measures=highdicom.PixelMeasuresSequence(series.slices[0].spacing, distance, distance),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # for headers that lack something
        raise ValueError(f"{series}: no DICOM-SEG can refer to it: {type(error).__name__}: {error}") from error
    content.SpecificCharacterSet = "ISO_IR 192"  # names of classes may have any character
    return content


def _descriptions(highdicom: Any, segments: Sequence[Segment], name: str, version: str) -> list[Any]:
    code = highdicom.sr.CodedConcept
    family = code("123110", "DCM", "Artificial Intelligence")
    algorithm = highdicom.AlgorithmIdentificationSequence(name=name, version=version, family=family)
    descriptions = [
        highdicom.seg.SegmentDescription(i, one.name, code(*one.category), code(*one.type), "AUTOMATIC", algorithm)
        for i, one in enumerate(segments, start=1)
    ]
    for description, one in zip(descriptions, segments):
        if one.modifier is not None:  # highdicom has no argument for it
            (kind,) = description.SegmentedPropertyTypeCodeSequence
            kind.SegmentedPropertyTypeModifierCodeSequence = [code(*one.modifier)]
    return descriptions
