"""Checks of cases before they are used: the only place that decides whether a file is valid.

Planning, training, evaluation and inference all call :py:func:`check_case` on the arrays that ``io`` reads, so they
accept the same files. A *problem* stops a run before it starts, a *warning* does not. Each is one line with the file,
the value found and the values allowed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..arrays import contiguous, value_counts
from ..preprocessing.geometry import spacing_of
from .dataset import Dataset
from .dicom import DicomSeries
from .dicom_seg import check_reference, is_our_seg
from .io import LABEL_TOLERANCE, check_grid, image_paths, is_ours, read_stored, to_labels
from .probabilities import is_our_probabilities
from .store import stored_content

__all__ = [
    "CaseCheck",
    "Expected",
    "Volume",
    "check_across_cases",
    "check_case",
    "check_cases",
    "check_dicom_seg",
    "check_folders",
    "check_image",
    "check_outputs",
    "check_stored",
    "checked_arrays",
    "invalid_cases",
]

File = str | PathLike
logger = logging.getLogger(__name__)
MAX_SHOWN = 20  # problems in one message
PLAUSIBLE_SPACING = (0.01, 50.0)  # mm
MAX_VALUES = 8  # label values in one line


@dataclass(frozen=True)
class Expected:
    """
    What a case must contain.

    Args:
        channels: number of image channels.
        classes: number of classes, background included; ``None`` to skip the labels. Defaults to ``None``.
        channels_from: source of ``channels``, for messages. Defaults to ``"in_channels"``.
        classes_from: source of ``classes``, for messages. Defaults to ``"out_channels"``.
        ignore_label: value of voxels without annotation, allowed beside the classes. Defaults to ``None``.
    """

    channels: int
    classes: int | None = None
    channels_from: str = "in_channels"
    classes_from: str = "out_channels"
    ignore_label: int | None = None

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Expected:
        """Return the expectations that ``dataset.json`` sets."""
        names = f"dataset.json: {', '.join(dataset.channel_names)}"
        return cls(len(dataset.channel_names), len(dataset.labels), names, "dataset.json", dataset.ignore_label)


@dataclass(frozen=True)
class Volume:
    """A case in memory: image ``(C, X, Y, Z)`` float32, label ``(X, Y, Z)`` integers, affine ``(4, 4)`` in mm, RAS."""

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray


@dataclass
class CaseCheck:
    """Result of the check of one case: problems and warnings, one line each."""

    id: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_cases(
    cases: Sequence[dict],
    in_channels: int,
    out_channels: int | None = None,
    num_workers: int = 2,
    settings: Mapping | None = None,
    cache_dir: str | None = None,
    ignore_label: int | None = None,
) -> None:
    """
    Check a list of cases and report all problems together. Each file is read once.

    Args:
        cases: dictionaries with ``id``, ``image`` (a file, or one per channel) and, for training, ``label``.
        in_channels: number of input channels of the network.
        out_channels: number of classes, background included. Defaults to ``None``: labels are not checked.
        num_workers: number of reading threads. Defaults to 2.
        settings: preprocessing settings of the stored cases, see
            :py:func:`~mednext_monai.preprocessing.case.check_settings`. Defaults to ``None``.
        cache_dir: folder of the stored cases. A stored case whose files have not changed is not read again; only its
            recorded channels and labels are checked. Defaults to ``None``: no stored cases.
        ignore_label: value of voxels without annotation, allowed beside the classes. Defaults to ``None``.

    Raises:
        ValueError: if the list is empty or a case is invalid. The message lists the problems of all cases.
    """
    if not cases:
        raise ValueError("the list of cases is empty: there is nothing to train on, evaluate or segment.")
    expected = Expected(in_channels, out_channels, ignore_label=ignore_label)

    def check(case: dict) -> CaseCheck:
        stored = None if cache_dir is None or settings is None else stored_content(case, settings, cache_dir)
        return check_case(case, expected)[0] if stored is None else _check_stored(case, *stored, expected)

    checks = _check_each(cases, check, num_workers)
    problems = [problem for found in checks for problem in found.problems]
    if problems:
        shown = "\n  ".join(problems[:MAX_SHOWN])
        more = f"\n  ... and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise ValueError(f"{len(problems)} problem(s) in {len(cases)} cases:\n  {shown}{more}")


def invalid_cases(cases: Sequence[dict], in_channels: int, num_workers: int = 2) -> dict[str, str]:
    """
    Check the images of cases as :py:func:`check_cases` does, and return the problems instead of raising an error.

    Args:
        cases: dictionaries with ``id`` and ``image``.
        in_channels: number of input channels of the network.
        num_workers: number of reading threads. Defaults to 2.

    Returns:
        the problems of each invalid case, by its id.
    """
    expected = Expected(in_channels)
    checks = _check_each(cases, lambda case: check_case(case, expected)[0], num_workers)
    return {found.id: " ".join(found.problems) for found in checks if found.problems}


def _check_each(cases: Sequence[dict], check: Callable[[dict], CaseCheck], num_workers: int) -> list[CaseCheck]:
    """Check cases in threads, log their warnings, and return the results in the order of the cases."""
    hidden = not sys.stderr.isatty()
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        checks = list(tqdm(pool.map(check, cases), total=len(cases), desc="checking data", disable=hidden))
    for note in (note for found in checks for note in found.warnings):
        logger.warning(note)
    return checks


def check_case(case: Mapping, expected: Expected) -> tuple[CaseCheck, Volume | None]:
    """
    Read a case and check it.

    All files must exist, be readable, and share one grid with an invertible affine. An image must have three spatial
    axes, the expected channels (as a fourth axis of the file, or one file each), only finite values, and at least one
    nonzero voxel. A label must have one channel and integer values from 0 to ``classes - 1``, or the ignore label. A
    constant channel and a case without foreground give warnings.

    Args:
        case: a dictionary with ``id``, ``image`` and, unless ``expected.classes`` is ``None``, ``label``.
        expected: what the case must contain.

    Returns:
        the result of the check, and the volume, or ``None`` if there are problems.
    """
    check = CaseCheck(case["id"])
    images = image_paths(case["image"])
    paths = images + ([case["label"]] if expected.classes is not None and case.get("label") else [])
    read: dict[File, tuple[np.ndarray, np.ndarray]] = {}
    for path in paths:
        try:
            read[path] = read_stored(path)
            check.problems += _affine_problems(path, read[path][1])
        except (ValueError, FileNotFoundError) as error:
            check.problems.append(str(error))
    readable = [path for path in images if path in read]
    check.problems += _channel_problems(case["id"], images, {path: len(read[path][0]) for path in readable}, expected)
    check.problems += _grid_problems(read)
    for path in readable:
        with np.errstate(over="ignore"):  # becomes infinite, which is reported
            read[path] = contiguous(read[path][0], np.float32), read[path][1]  # as the network sees it
        problems, warnings = _value_problems(path, read[path][0])
        check.problems += problems
        check.warnings += warnings
    if images and images[0] in read:
        check.warnings += _spacing_warnings(check.id, read[images[0]][1])
    label = None
    if expected.classes is not None and len(paths) > len(images) and paths[-1] in read:
        label, problems, warnings = _checked_label(paths[-1], read[paths[-1]][0], expected)
        check.problems += problems
        check.warnings += warnings
    if check.problems:
        return check, None
    arrays = [read[path][0] for path in images]
    image = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return check, Volume(image, label, read[images[0]][1])


def check_image(name: str, image: np.ndarray, affine: np.ndarray, expected: Expected) -> Volume:
    """
    Check an image in memory as :py:func:`check_case` checks files, and log its warnings.

    Args:
        name: its name, for messages.
        image: ``(C, X, Y, Z)``, any type of real numbers.
        affine: ``(4, 4)``, voxel index to mm.
        expected: what the image must contain.

    Raises:
        ValueError: if there are problems.
    """
    if image.dtype.kind not in "biuf":
        raise ValueError(f"{name}: contains values of type {image.dtype}; expected real numbers.")
    if image.ndim != 4 or min(image.shape) < 1:
        raise ValueError(f"{name}: must have the shape (C, X, Y, Z), got {tuple(image.shape)}.")
    problems = _affine_problems(name, affine) + _channel_problems(name, [name], {name: len(image)}, expected)
    found, warnings = _value_problems(name, image)
    if problems + found:
        raise ValueError(" ".join(problems + found))
    for note in warnings + _spacing_warnings(name, affine):
        logger.warning(note)
    return Volume(contiguous(image, np.float32), None, np.asarray(affine, dtype=np.float64))


def checked_arrays(case: Mapping, expected: Expected) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """
    Read a case, check it with :py:func:`check_case`, log its warnings, and return image, label and affine.

    Raises:
        ValueError: if there are problems.
    """
    check, volume = check_case(case, expected)
    for note in check.warnings:
        logger.warning(note)
    if volume is None:
        raise ValueError(" ".join(check.problems))
    return volume.image, volume.label, volume.affine


def check_stored(case: Mapping, expected: Expected, settings: Mapping, cache_dir: str) -> list[str]:
    """
    Return the problems of a case that was stored before, from its recorded channels and labels.

    Args:
        case: as for :py:func:`check_case`.
        expected: what the case must contain.
        settings: preprocessing settings of the stored cases.
        cache_dir: folder of the stored cases.

    Returns:
        one line for each problem; none if the case is not stored, or if its files have changed.
    """
    stored = stored_content(case, settings, cache_dir)
    return [] if stored is None else _check_stored(case, *stored, expected).problems


def check_across_cases(
    dataset: Dataset, contents: Mapping[str, str], class_voxels: np.ndarray
) -> tuple[list[str], list[str]]:
    """
    Check a data set as a whole: duplicate files or images, and classes that never occur.

    Args:
        dataset: the data set.
        contents: :py:func:`image_hash` of every readable case, by case id.
        class_voxels: number of voxels of each class over all readable cases, ``(classes,)``.

    Returns:
        problems and warnings, one line each.
    """
    labels = Counter(case["label"] for case in dataset.cases)
    problems = [f"{Path(path).name}: label file of {n} cases" for path, n in labels.items() if n > 1]
    same: dict[str, list[str]] = {}
    for case_id, content in contents.items():
        same.setdefault(content, []).append(case_id)
    problems += [
        f"{', '.join(ids)}: identical images; keep one, otherwise validation sees training data"
        for ids in same.values()
        if len(ids) > 1
    ]
    warnings = []
    if same and not class_voxels[1:].any():
        problems.append("no case has any foreground: there is nothing to learn")
    elif same:
        names = [f"{value} {dataset.labels[value]!r}" for value in np.flatnonzero(class_voxels == 0)]
        warnings += [f"label {name} occurs in no case" for name in names]
    return problems, warnings


def image_hash(image: np.ndarray) -> str:
    """Return a hash of the voxels of an image ``(C, X, Y, Z)``, not of its file: gzip stores a time in the file."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image.data)
    return digest.hexdigest()


def check_folders(**folders: str) -> None:
    """
    Create folders and check that they are writable.

    Args:
        folders: folder by the name of the option that sets it.

    Raises:
        ValueError: if a folder cannot be created or written to. The message gives the option, folder and reason.
    """
    for name, folder in folders.items():
        if not folder:
            raise ValueError(f"{name} must name a folder, got {folder!r}.")
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"{name}: cannot write to the folder {folder}: {error.strerror or error}.") from error


def check_outputs(
    cases: Sequence[Mapping], output_dir: str | Sequence[str], overwrite: bool = False, ending: str = ".nii.gz"
) -> None:
    """
    Check that no result replaces an input, or a file that this package did not write.

    Args:
        cases: dictionaries with ``id`` and ``image``, to be written as ``<output_dir>/<id><ending>``.
        output_dir: folder of the results, or a list of several.
        overwrite: whether files of others may be replaced; inputs never are. Defaults to ``False``.
        ending: ``".nii.gz"`` for segmentations, ``".npz"`` for probabilities. Defaults to ``".nii.gz"``.

    Raises:
        ValueError: naming the files that would be replaced.
    """
    folders = [output_dir] if isinstance(output_dir, (str, PathLike)) else output_dir
    inputs = {os.path.realpath(path) for case in cases for path in image_paths(case["image"])}
    targets = [Path(folder, f"{case['id']}{ending}") for folder in folders for case in cases]
    hit = [str(target) for target in targets if os.path.realpath(target) in inputs]
    if hit:
        raise ValueError(
            f"output_dir: {_some(hit)} would be replaced by its own segmentation; choose another folder than that of "
            "the images."
        )
    is_our_file = is_our_probabilities if ending == ".npz" else is_ours
    foreign = [str(target) for target in targets if target.exists() and not is_our_file(target)]
    if foreign and not overwrite:
        raise ValueError(
            f"output_dir: {_some(foreign)} exists and was not written by this package; choose another folder, or allow "
            "it to be replaced with --overwrite true."
        )


def check_dicom_seg(cases: Sequence[Mapping], output_dir: str, overwrite: bool = False) -> None:
    """
    Check that the segmentations of cases can be written as DICOM-SEG, before the first one is computed.

    Args:
        cases: dictionaries with ``id`` and ``image``, to be written as ``<output_dir>/<id>.seg.dcm``.
        output_dir: folder of the segmentations.
        overwrite: whether files of others may be replaced; inputs never are. Defaults to ``False``.

    Raises:
        ValueError: if highdicom is missing, an image is not DICOM, a series lacks what a DICOM-SEG refers to, or a file
            would be replaced.
    """
    for case in cases:
        series, target = case["image"], Path(output_dir, f"{case['id']}.seg.dcm")
        if not isinstance(series, DicomSeries):
            raise ValueError(
                f"dicom_seg: {image_paths(series)[0]} is not DICOM, and a DICOM-SEG refers to the files of a series; "
                "leave out dicom_seg, or give the series as input."
            )
        check_reference(series)
        if os.path.realpath(target) in map(os.path.realpath, series.files):
            raise ValueError(f"output_dir: {target} is an input and would be replaced; choose another folder.")
        if target.exists() and not overwrite and not is_our_seg(target):
            raise ValueError(
                f"output_dir: {target} exists and was not written by this package; choose another folder, or allow it "
                "to be replaced with --overwrite true."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_stored(case: Mapping, channels: int, labels: list[int], expected: Expected) -> CaseCheck:
    check = CaseCheck(case["id"])
    if channels != expected.channels:
        check.problems.append(_wrong_channels(case["id"], channels, expected))
    if expected.classes is not None:
        found = np.asarray(labels)
        problems, warnings = _class_problems(case["label"], found, np.zeros_like(found), expected)
        check.problems += problems
        check.warnings += warnings
    return check


def _affine_problems(path: File, affine: np.ndarray) -> list[str]:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return [f"{path}: the affine is not an invertible map from voxels to millimeters: {affine.tolist()}"]
    return []


def _spacing_warnings(case_id: str, affine: np.ndarray) -> list[str]:
    """Return a warning about voxels whose edges suggest that the file states them in another unit than it means."""
    spacing = spacing_of(affine)
    if all(PLAUSIBLE_SPACING[0] <= value <= PLAUSIBLE_SPACING[1] for value in spacing):
        return []
    shown = " x ".join(f"{value:.3g}" for value in spacing)
    return [f"{case_id}: the voxels are {shown} mm large, which is implausible; is the unit of length right?"]


def _channel_problems(case_id: str, images: list, found: Mapping[File, int], expected: Expected) -> list[str]:
    """Return problems with the number of channel files, or with the number of channels in one file."""
    if len(images) == 1:
        return [_wrong_channels(path, n, expected) for path, n in found.items() if n != expected.channels]
    problems = [f"{path}: has {n} channels, expected one per file." for path, n in found.items() if n != 1]
    if len(images) != expected.channels:
        problems.append(
            f"{case_id}: has {len(images)} channel files, expected {expected.channels} ({expected.channels_from})."
        )
    return problems


def _wrong_channels(name: File, found: int, expected: Expected) -> str:
    return f"{name}: has {found} channel(s), expected {expected.channels} ({expected.channels_from})."


def _grid_problems(read: Mapping[File, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Return a problem for each file whose grid differs from that of the case's first file."""
    if not read:
        return []
    problems = []
    (first, (first_array, first_affine)), *others = read.items()
    for path, (array, affine) in others:
        try:
            check_grid(path, array.shape[1:], affine, first, first_array.shape[1:], first_affine)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _value_problems(path: File, image: np.ndarray) -> tuple[list[str], list[str]]:
    if image.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(image)))
        if bad:
            return [f"{path}: contains {bad} of {image.size} voxels that are NaN or infinite; all must be finite."], []
    if not image.any():
        return [f"{path}: every voxel is zero."], []
    flat = [c for c, channel in enumerate(image) if channel.min() == channel.max()]
    return [], [f"{path}: channel {c} is constant, {image[c].flat[0]:g}." for c in flat]


def _checked_label(path: File, array: np.ndarray, expected: Expected) -> tuple[np.ndarray | None, list[str], list[str]]:
    """Return the label ``(X, Y, Z)`` as signed integers, or ``None``; problems; warnings."""
    if len(array) != 1:
        return None, [f"{path}: has {len(array)} channels, a label must have one."], []
    values, counts = value_counts(array)
    problems, warnings = _class_problems(path, values, counts, expected)
    return None if problems else to_labels(array[0], path), problems, warnings


def _class_problems(
    path: File, values: np.ndarray, counts: np.ndarray, expected: Expected
) -> tuple[list[str], list[str]]:
    """Return problems and warnings for the label values of a file; a count of 0 means that it is not known."""
    classes, ignore = expected.classes or 0, expected.ignore_label
    values = values.astype(np.float64)
    rounded = np.rint(values)
    known = (rounded >= 0) & (rounded < classes) | (False if ignore is None else rounded == ignore)
    right = (np.abs(values - rounded) <= LABEL_TOLERANCE) & known  # no NaN
    if not right.all():
        sparse = ignore is None and expected.classes_from == "out_channels" and set(values[~right]) == {classes}
        hint = f" If {classes} marks voxels without annotation, set ignore_label to it." if sparse else ""
        shown = [f"{v:g}" + (f" ({n} voxels)" if n else "") for v, n in zip(values[~right], counts[~right])][
            :MAX_VALUES
        ]
        return [
            f"{path}: contains the label value(s) {', '.join(shown)}; allowed are the integers 0 to "
            f"{classes - 1} ({classes} classes, {expected.classes_from})"
            f"{'' if ignore is None else f' and {ignore}, the ignore label'}.{hint}"
        ], []
    if ignore is not None and bool((rounded == ignore).all()):
        return [], [f"{path}: has no annotated voxel, nothing can be learned from it."]
    has_foreground = bool(((rounded != 0) & (rounded != ignore)).any())
    return [], [] if has_foreground else [f"{path}: has no foreground; its patches are drawn at random positions."]
