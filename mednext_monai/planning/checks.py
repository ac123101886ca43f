"""Checking a data set before anything is computed from it: every case's files, and the cases against each other.

A *problem* stops planning, a *warning* does not. Each is one line that names the case, the file, what was found and
what is allowed.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.dataset import Dataset
from ..data.reading import read_image

__all__ = ["GRID_TOLERANCE", "CaseCheck", "Volume", "check_across_cases", "check_case"]

GRID_TOLERANCE = 0.1  # voxels that a corner of the grid may lie apart in two files of a case
INTEGRAL_TOLERANCE = 1e-3  # labels stored as float with a scale factor come back not quite whole


@dataclass(frozen=True)
class Volume:
    """A case in memory: image ``(C, X, Y, Z)`` float32, label ``(X, Y, Z)`` integers, affine ``(4, 4)`` in mm, RAS."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


@dataclass
class CaseCheck:
    """What the check of one case found: problems and warnings as lines, and a hash of the image's voxels."""

    id: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    content: str = ""


def check_case(case: dict, dataset: Dataset) -> tuple[CaseCheck, Volume | None]:
    """
    Read a case and check it: readable, all channels, one grid, finite values, labels whole and inside the classes.

    Args:
        case: one of ``dataset.cases``.
        dataset: whose channels and labels are expected.

    Returns:
        what was found, and the volume, or ``None`` when there are problems.
    """
    check = CaseCheck(case["id"])
    names = [os.path.relpath(path, dataset.directory) for path in (*case["image"], case["label"])]
    arrays, affines = [], []
    for name, path in zip(names, (*case["image"], case["label"])):
        try:
            array, affine = read_image(path)
        except (FileNotFoundError, ValueError) as e:
            check.problems.append(f"{name}: {e}")
        else:
            arrays.append(array)
            affines.append(affine)
            check.problems += [f"{name}: {line}" for line in _affine_problems(affine)]
    if check.problems:
        return check, None
    check.problems += _channel_problems(names, arrays, dataset.channel_names)
    check.problems += _grid_problems(names, arrays, affines)
    check.problems += _label_problems(names[-1], arrays[-1], dataset.labels)
    for name, array in zip(names, arrays[:-1]):
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            check.problems.append(f"{name}: {bad} of {array.size} voxels are NaN or infinite; all must be finite")
        elif not array.any():
            check.problems.append(f"{name}: every voxel is zero")
        else:
            flat = [c for c, channel in enumerate(array) if channel.min() == channel.max()]
            check.warnings += [f"{name}: channel {c} has one value everywhere, {array[c].flat[0]:g}" for c in flat]
    if check.problems:
        return check, None
    image = arrays[0] if len(arrays) == 2 else np.concatenate(arrays[:-1])
    label = np.rint(arrays[-1][0]).astype(np.int16)
    if not label.any():
        check.warnings.append(f"{names[-1]}: no foreground, all voxels are {dataset.labels[0]}")
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image)  # the voxels, not the file: gzip stamps its files with a time
    check.content = digest.hexdigest()
    return check, Volume(image, label, affines[0])


def check_across_cases(dataset: Dataset, checks: Sequence[CaseCheck], class_voxels: np.ndarray) -> tuple[list, list]:
    """
    Check what only all cases together show: files or images that come twice, classes that never occur.

    Args:
        dataset: the data set.
        checks: the check of every case, in the order of ``dataset.cases``.
        class_voxels: voxels of each class over all readable cases, ``(classes,)``.

    Returns:
        problems and warnings, one line each.
    """
    labels = Counter(case["label"] for case in dataset.cases)
    problems = [f"{Path(path).name}: label file of {n} cases" for path, n in labels.items() if n > 1]
    same: dict[str, list[str]] = {}
    for check in checks:
        if check.content:
            same.setdefault(check.content, []).append(check.id)
    problems += [
        f"{', '.join(ids)}: the same image, voxel by voxel; keep one, or validation sees training data"
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


def _affine_problems(affine: np.ndarray) -> list[str]:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return [f"its affine is no invertible map from voxels to millimetres: {affine.tolist()}"]
    return []


def _channel_problems(names: list[str], arrays: list[np.ndarray], channel_names: list[str]) -> list[str]:
    """Missing or superfluous channels of the image files, more than one channel in the label."""
    problems = []
    expected = f"{_channels_text(len(channel_names))} ({', '.join(channel_names)})"
    if len(arrays) == 2 and len(arrays[0]) != len(channel_names):
        problems.append(f"{names[0]}: has {_channels_text(len(arrays[0]))}, dataset.json names {expected}")
    elif len(arrays) > 2:
        wrong = [(name, len(array)) for name, array in zip(names[:-1], arrays) if len(array) != 1]
        problems += [f"{name}: has {n} channels, expected one per file" for name, n in wrong]
    if len(arrays[-1]) != 1:
        problems.append(f"{names[-1]}: has {len(arrays[-1])} channels, a label must have one")
    return problems


def _channels_text(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"


def _grid_problems(names: list[str], arrays: list[np.ndarray], affines: list[np.ndarray]) -> list[str]:
    """Files whose grid, shape or affine, is not that of the first file."""
    problems = []
    shape = arrays[0].shape[1:]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij"), -1).reshape(-1, 4)
    spacing = np.linalg.norm(affines[0][:3, :3], axis=0)
    for name, array, affine in zip(names[1:], arrays[1:], affines[1:]):
        if array.shape[1:] != shape:
            problems.append(f"{name}: shape {array.shape[1:]} differs from {shape} of {names[0]}")
            continue
        apart = np.linalg.norm((corners @ (affine - affines[0]).T)[:, :3], axis=1).max()
        if apart > GRID_TOLERANCE * spacing.min():
            problems.append(
                f"{name}: its affine puts a corner of the volume {apart:.3g} mm from where {names[0]} puts it; "
                f"{GRID_TOLERANCE * spacing.min():.3g} mm, {GRID_TOLERANCE} voxels, are allowed"
            )
    return problems


def _label_problems(name: str, array: np.ndarray, labels: list[str]) -> list[str]:
    """Label values that are not finite, not whole, or not among the classes."""
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        return [f"{name}: {bad} label voxels are NaN or infinite"]
    values, counts = np.unique(array, return_counts=True)
    whole = np.abs(values - np.rint(values)) <= INTEGRAL_TOLERANCE
    if not whole.all():
        found = ", ".join(f"{value:g}" for value in values[~whole][:5])
        return [f"{name}: {int(counts[~whole].sum())} label voxels are not whole numbers, for example {found}"]
    outside = (np.rint(values) < 0) | (np.rint(values) >= len(labels))
    if outside.any():
        found = ", ".join(f"{v:g} ({n} voxels)" for v, n in list(zip(values[outside], counts[outside]))[:10])
        return [f"{name}: label values {found} are not among the classes 0 to {len(labels) - 1} of dataset.json"]
    return []
