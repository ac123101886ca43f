"""The series of DICOM images in a folder and below it, as the cases of an inference."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .dicom import GEOMETRY, MARKS, SAME_DIRECTION, SAME_POSITION, DicomSeries, Slice, import_package
from .io import file_ending, is_dicom
from .picture_files import is_picture

__all__ = ["dicom_cases"]

logger = logging.getLogger(__name__)
NO_VOLUMES = (  # objects with rows and columns that are no images of a patient
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.2",  # radiotherapy dose
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STORED_CLASS = "MediaStorageSOPClassUID"
VOLUMETRIC = ("CT", "MR", "PT", "NM")  # modalities whose images must have a position
FILE = ("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "FrameOfReferenceUID")
PIXELS = ("Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "SpecificCharacterSet")
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def dicom_cases(source: Path, in_channels: int = 1) -> list[dict]:
    """
    Return the series in a file, or in a folder and the folders below it, as cases.

    Files are recognized by their content. Objects that are not images (segmentations, reports, structures, presentation
    states, ``DICOMDIR``) are ignored. Localizers, single slices, repeated single slices (bolus tracking) and images
    without a position in the patient that are no CT, MR, PET or NM images (screen captures) are passed over with a
    warning. Below a folder with images in other formats nothing is searched.

    The id of a case is the name of its folder, or the names of the folders from ``source`` down to it, joined by ``_``.
    If there are several series, the number of the series follows, and if needed the end of its UID and a count.

    Args:
        source: a multi-frame file or a folder.
        in_channels: number of input channels of the network. Defaults to 1.

    Returns:
        ``[{"id": str, "image": DicomSeries}, ...]``, empty if there is no DICOM file.

    Raises:
        ValueError: if pydicom is missing, a file cannot be read, there are images of other formats as well, no series
            is a volume, or the network has several channels.
    """
    found, others = _dicom_files(source)
    if not found:
        return []
    if others:
        raise ValueError(
            f"{source}: has DICOM files such as {found[0]} and images in other formats such as {others[0]}; give one "
            "of them at a time."
        )
    stacks = _stacks(found)
    volumes = [stack for stack, reason in stacks if not reason]
    passed = [f"{stack} {reason}" for stack, reason in stacks if reason]
    for note in passed:
        logger.warning(f"{note}; it is passed over.")
    if not volumes:
        raise ValueError(
            f"{source}: has {len(found)} DICOM file(s), but no series of slices to segment"
            f"{': ' if passed else ''}{'; '.join(passed[:3])}."
        )
    if in_channels != 1:
        raise ValueError(
            f"{source}: is DICOM, and in_channels is {in_channels}: which series is which channel is not guessed. "
            "Convert them to NIfTI, for example with dcm2niix, as case_0000.nii.gz, case_0001.nii.gz, ..."
        )
    return _named(volumes, source)


def _dicom_files(source: Path) -> tuple[list[Path], list[Path]]:
    """Return the DICOM files, and the images in other formats that would be ignored."""
    if not source.is_dir():
        return ([source] if is_dicom(source) else []), []
    top = sorted(file for file in source.iterdir() if file.is_file() and file.name[0] != ".")
    files = top if any(map(_is_volume, top)) else list(_walk(source))
    return (
        [file for file in files if not file_ending(file) and is_dicom(file)],
        [file for file in files if _is_volume(file)],
    )


def _is_volume(file: Path) -> bool:
    """Return whether the file has the ending of an image in another format; pictures illustrate DICOM files."""
    return bool(file_ending(file)) and not is_picture(file)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, but not hidden ones; links are followed, but no folder is read twice."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if name[0] != ".")
        if real not in seen:
            files = (Path(root, name) for name in sorted(names) if name[0] != ".")
            yield from (file for file in files if file.is_file())
        seen.add(real)


def _stacks(files: Iterable[Path]) -> list[tuple[DicomSeries, str]]:
    """Group the slices of files into series of parallel slices with one matrix; add why one is no volume, or ``""``."""
    series: dict[str, list[tuple[Mapping, list[Slice]]]] = {}
    for file in files:
        header = _read_header(file)
        if _is_image(header, file):
            series.setdefault(str(header.get("SeriesInstanceUID")), []).append((header, _slices(header, str(file))))
    result = []
    for uid, members in series.items():
        head = members[0][0]
        description = f"{head.get('Modality', '')} {head.get('SeriesDescription', '')}".strip()
        groups: list[list[Slice]] = []
        for one in (one for _, slices in members for one in slices):
            group = next((group for group in groups if _are_parallel(group[0], one)), None)
            groups.append([one]) if group is None else group.append(one)
        for group in groups:
            folder = os.path.commonpath([os.path.dirname(one.file) for one in group])
            stack = DicomSeries(folder, uid, _integer(head.get("SeriesNumber")), description, _sorted(group))
            is_capture = str(head.get("SOPClassUID")).startswith(SECONDARY_CAPTURE)
            result.append((stack, _reason(stack, not is_capture and head.get("Modality") in VOLUMETRIC)))
    return result


def _read_header(file: Path) -> Any:
    """Return the attributes that are needed here, without pixels."""
    pydicom = import_package("pydicom")
    tags = [*FILE, *PIXELS, *GEOMETRY, *MARKS, *GROUPS]
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        list(header), header.file_meta.get(STORED_CLASS)  # decodes the values
        return header
    except Exception as error:  # many kinds, for a damaged file
        raise ValueError(f"{file}: cannot be read as DICOM: {type(error).__name__}: {error}") from error


def _is_image(header: Any, file: Path) -> bool:
    """Return whether an object is an image; one that should be, but has no matrix, is damaged."""
    kind = header.get("SOPClassUID") or header.file_meta.get(STORED_CLASS)
    if "Rows" in header and "Columns" in header:
        return kind not in NO_VOLUMES
    name = getattr(kind, "name", None)  # of several UIDs there is none
    if name is None or name.endswith("Image Storage"):
        raise ValueError(f"{file}: cannot be read as DICOM: it has no {'SOP class' if name is None else 'matrix'}.")
    return False


def _slices(header: Any, file: str) -> list[Slice]:
    """Return the slice of a file, or one per frame of a multi-frame file."""
    try:
        frames = int(header.get("NumberOfFrames") or 1)
        if not 0 < frames <= os.path.getsize(file):
            raise ValueError(f"it cannot have {frames} frames")
        common = dict(_elements(header))
        for group in header.get("SharedFunctionalGroupsSequence") or []:
            common.update(_nested(group))
        groups = header.get("PerFrameFunctionalGroupsSequence") or [[]] * frames
        return [_slice({**common, **dict(_nested(groups[i]))}, header, file, i) for i in range(frames)]
    except Exception as error:  # a number that is none, a frame without group
        raise ValueError(f"{file}: cannot be read as DICOM: {type(error).__name__}: {error}") from error


def _elements(item: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, item[name].value) for name in (*GEOMETRY, *MARKS) if name in item)


def _nested(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes in the sequences of a functional group, each of which has one item."""
    for element in group:
        for item in element.value[:1] if element.VR == "SQ" else ():
            yield from _elements(item)


def _slice(values: Mapping[str, Any], header: Any, file: str, frame: int) -> Slice:
    position, orientation, spacing = (_numbers(values.get(name), n) for name, n in zip(GEOMETRY, (3, 6, 2)))
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    return Slice(
        file,
        frame,
        int(header.Rows),
        int(header.Columns),
        position,
        orientation,
        spacing,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        str(header.get("PhotometricInterpretation", "")),
        str(header.get("FrameOfReferenceUID", "")),
        tuple(_text(values.get(name, "")) for name in MARKS),
    )


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an attribute, or ``None`` if it is missing, empty or incomplete."""
    numbers = () if value is None or isinstance(value, (str, float)) else tuple(float(number) for number in value)
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _integer(value: Any) -> int | None:
    """Return the number of an attribute, or ``None`` if it is missing, or something else."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))


def _are_parallel(one: Slice, other: Slice) -> bool:
    """Return whether two slices of a series may be of one volume: one direction, one matrix, localizer or not."""
    if (one.rows, one.columns, _is_localizer(one)) != (other.rows, other.columns, _is_localizer(other)):
        return False
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() < SAME_DIRECTION)


def _is_localizer(one: Slice) -> bool:
    return "LOCALIZER" in one.marks[MARKS.index("ImageType")].split("\\")


def _sorted(slices: list[Slice]) -> tuple[Slice, ...]:
    """Sort slices by their position along the normal; at one position, or without one, by file."""
    if any(one.position is None or one.orientation is None for one in slices):
        return tuple(sorted(slices, key=lambda one: (one.file, one.frame)))
    axes = np.asarray(slices[0].orientation).reshape(2, 3)
    along = np.asarray([one.position for one in slices]) @ np.cross(axes[0], axes[1])
    keys = {id(one): (round(float(place), 6), one.file, one.frame) for one, place in zip(slices, along)}
    return tuple(sorted(slices, key=lambda one: keys[id(one)]))


def _reason(stack: DicomSeries, must_have_position: bool) -> str:
    """Return why slices are no volume and are passed over, or an empty text."""
    count = len(stack.slices)
    if any(one.position is None or one.orientation is None for one in stack.slices):
        return "" if must_have_position else f"has {count} image(s) without a position in the patient"
    if _is_localizer(stack.slices[0]):
        return f"is a localizer of {count} image(s)"
    if count == 1:
        return f"has a single slice in its plane, {Path(stack.slices[0].file).name}"
    extent = np.ptp(np.asarray([one.position for one in stack.slices]), axis=0).max()
    return f"has {count} slices at a single position" if extent <= SAME_POSITION else ""


def _named(stacks: list[DicomSeries], source: Path) -> list[dict]:
    """Give each series the name of its folder and, if there are several, what tells them apart."""
    bases: dict[tuple[str, str], list[DicomSeries]] = {}
    for stack in stacks:
        parts = Path(os.path.relpath(stack.folder, source)).parts if source.is_dir() else ()
        own = Path(os.path.abspath(source)).name if source.is_dir() else re.sub(r"(?i)\.(dcm|dicom)$", "", source.name)
        bases.setdefault((stack.folder, "_".join(parts) or own), []).append(stack)
    cases = []
    for (_, base), members in bases.items():
        labels = [
            (base, "series" if one.number is None else str(one.number), one.uid.split(".")[-1], str(i + 1))
            for i, one in enumerate(members)
        ]
        depth = next(n for n in range(1, 5) if len({label[:n] for label in labels}) == len(labels))
        cases += [{"id": "_".join(label[:depth]), "image": one} for label, one in zip(labels, members)]
    return cases
