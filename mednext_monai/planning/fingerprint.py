"""The fingerprint of a data set: shapes, spacings, nonzero crop, intensities and classes, in one pass over all cases.

Each case is read once, in parallel processes, checked, and measured if it is valid.

Source: the fingerprint of nnU-Net v1 as MedNeXt uses it. As in the original, intensities are pooled over all cases (no
fold is held out), from every 10th foreground voxel inside the nonzero crop, in (z, y, x) order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from ..arrays import mean_and_sd, value_counts
from ..data.checks import CaseCheck, Expected, Volume, check_across_cases, check_case, image_hash
from ..data.dataset import Dataset, DatasetError
from ..parallel import map_cases
from ..preprocessing.geometry import spacing_of
from ..preprocessing.nonzero import bounding_box, crop, nonzero_mask

__all__ = ["CaseFingerprint", "intensity_statistics", "measure_case", "scan"]

MAX_PROCESSES = 8  # each holds one case in memory
FOREGROUND_STRIDE = 10  # the original's: every 10th foreground voxel
PREVIEW_VOXELS = 2000  # per case and channel, for the histograms of the report


@dataclass(frozen=True)
class CaseFingerprint:
    """
    Measurements of one case.

    Args:
        id: case id.
        shape: voxels per axis, ``(X, Y, Z)`` in the axis order of the file.
        spacing: mm per voxel along each axis.
        orientation: direction of each axis, such as ``"RAS"``.
        cropped_shape: voxels per axis of the nonzero crop.
        class_voxels: number of annotated voxels of each class in the full volume, background first.
        foreground: every 10th foreground voxel of each channel, ``(C, n)`` float32.
        preview: evenly sampled voxels of the nonzero crop, ``(C, m)`` float32.
        mean: mean of each channel over the nonzero crop.
        sd: population standard deviation of each channel over the nonzero crop.
        foreground_outside: number of foreground voxels outside the nonzero crop. Defaults to 0.
        content: hash of the voxels of the image. Defaults to ``""``.
        ignored_voxels: number of voxels without annotation. Defaults to 0.
    """

    id: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    cropped_shape: tuple[int, ...]
    class_voxels: np.ndarray
    foreground: np.ndarray
    preview: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    foreground_outside: int = 0
    content: str = ""
    ignored_voxels: int = 0

    @property
    def size_reduction(self) -> float:
        """Fraction of the voxels that the nonzero crop keeps."""
        return float(np.prod(self.cropped_shape) / np.prod(self.shape))


def scan(
    dataset: Dataset, processes: int | None = None, progress: bool = True
) -> tuple[list[CaseFingerprint], list[str]]:
    """
    Check and measure all cases of a data set.

    Args:
        dataset: the data set.
        processes: number of parallel processes; 0 uses the current one. Defaults to ``None``: one per available CPU,
            at most 8.
        progress: whether to show a progress bar (on stderr). Defaults to ``True``.

    Returns:
        the fingerprint of every case, in the order of ``dataset.cases``, and the warnings.

    Raises:
        DatasetError: if a case is invalid, or kills the process that reads it, for example because memory ran out. The
            message lists the problems of all cases.
        ValueError: if ``processes`` is negative.
    """
    if processes is not None and processes < 0:
        raise ValueError(f"processes must be 0 or more, got {processes}.")
    if processes is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = min(cpus, MAX_PROCESSES)
    scan_case = functools.partial(
        _scan_case,
        expected=Expected.of_dataset(dataset),
        classes=len(dataset.labels),
        ignore_label=dataset.ignore_label,
    )
    by_id = {case["id"]: case for case in dataset.cases}
    results, failures = map_cases(scan_case, by_id, max(1, processes), "checking", progress)
    problems = [f"{case}: {message}" for case, message in failures.items()]
    checks = [check for check, _ in results.values()]
    cases = [case for _, case in results.values() if case is not None]
    voxels = np.sum([case.class_voxels for case in cases], axis=0) if cases else np.zeros(len(dataset.labels), int)
    across, warnings = check_across_cases(dataset, {case.id: case.content for case in cases}, voxels)
    problems += [f"{check.id}: {line}" for check in checks for line in check.problems] + across
    if problems:
        raise DatasetError(dataset.directory, problems)
    return cases, [f"{check.id}: {line}" for check in checks for line in check.warnings] + warnings


def _scan_case(
    case: Mapping, expected: Expected, classes: int, ignore_label: int | None
) -> tuple[CaseCheck, CaseFingerprint | None]:
    check, volume = check_case(case, expected)
    return check, None if volume is None else measure_case(case["id"], volume, classes, ignore_label)


def measure_case(case_id: str, volume: Volume, classes: int, ignore_label: int | None = None) -> CaseFingerprint:
    """
    Return the fingerprint of one case.

    Args:
        case_id: case id.
        volume: the case, with a label.
        classes: number of classes, background included.
        ignore_label: value of voxels without annotation, which are no foreground. Defaults to ``None``.
    """
    start, stop = bounding_box(nonzero_mask(volume.image))
    full, ignored = volume.label, 0
    if ignore_label is not None:
        ignored = int(np.count_nonzero(full == ignore_label))
        full = np.where(full == ignore_label, 0, full)
    image, label = (crop(array, start, stop) for array in (volume.image, full))
    class_voxels = np.zeros(classes, np.int64)
    found, counts = value_counts(full)
    class_voxels[found] = counts
    class_voxels[0] -= ignored
    # transposed: voxels are enumerated in the original's (z, y, x) order
    foreground = np.stack([channel.T[label.T > 0][::FOREGROUND_STRIDE] for channel in image])
    flat = image.reshape(len(image), -1)
    mean, sd = np.transpose([mean_and_sd(channel) for channel in flat])
    return CaseFingerprint(
        id=case_id,
        shape=tuple(full.shape),
        spacing=spacing_of(volume.affine),
        orientation="".join(nib.aff2axcodes(volume.affine)),
        cropped_shape=tuple(label.shape),
        class_voxels=class_voxels,
        foreground=foreground,
        preview=flat[:, :: max(1, flat.shape[1] // PREVIEW_VOXELS)].copy(),
        mean=mean,
        sd=sd,
        foreground_outside=int(np.count_nonzero(full > 0) - np.count_nonzero(label > 0)),
        content=image_hash(volume.image),
        ignored_voxels=ignored,
    )


def intensity_statistics(cases: Sequence[CaseFingerprint]) -> list[dict[str, float]]:
    """
    Return statistics of each channel over the pooled foreground voxels of all cases.

    Returns:
        ``mean``, ``sd`` (population), ``median``, ``min``, ``max``, ``p005`` and ``p995`` (the 0.5 and 99.5
        percentiles) of each channel, in the units of the image.

    Raises:
        ValueError: if no case has foreground.
    """
    statistics = []
    for channel in range(len(cases[0].foreground)):
        values = np.concatenate([case.foreground[channel] for case in cases]).astype(np.float64)
        if not len(values):
            raise ValueError("no case has any foreground inside its nonzero region; check the labels.")
        low, median, high = np.percentile(values, (0.5, 50, 99.5))
        statistics.append(
            {
                "mean": float(values.mean()),
                "sd": float(values.std()),
                "median": float(median),
                "min": float(values.min()),
                "max": float(values.max()),
                "p005": float(low),
                "p995": float(high),
            }
        )
    return statistics
