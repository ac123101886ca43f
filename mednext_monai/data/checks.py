"""Checks of images and labels before the first training step, so that a broken file does not end a run at epoch 400."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from ..preprocessing.case_store import stored_content
from ..preprocessing.files import check_grid, is_nifti
from .reading import read_image

__all__ = ["check_cases", "check_folders"]

logger = logging.getLogger(__name__)
MAX_SHOWN = 20


def check_cases(
    cases: Sequence[dict],
    in_channels: int,
    out_channels: int | None = None,
    num_workers: int = 2,
    plan: Mapping | None = None,
    cache_dir: str | None = None,
) -> None:
    """
    Read every file of a list of cases once and report all problems together.

    Checked are: the files exist and are whole; an image has three spatial axes, ``in_channels`` channels (a fourth
    axis of the file), finite values and not only zeros; a label has one channel, the image's grid (shape, and corners
    within a tenth of a voxel) and whole values from 0 to ``out_channels - 1``. A case without foreground is no error
    but logged as a warning. Formats are those of ``reading``.

    Args:
        cases: dictionaries with ``id``, ``image`` (a file, or one per channel) and, for training, ``label``.
        in_channels: the channels that the network takes.
        out_channels: the classes of the network, background included; ``None`` when there are no labels.
        num_workers: threads that read. Defaults to 2.
        plan: of a store of preprocessed cases, see :py:func:`mednext_monai.preprocessing.case.check_plan`. Defaults to
            ``None``.
        cache_dir: the store's folder. Cases that are in it and whose files have not changed since were read when they
            were preprocessed; only their channels and labels are checked, as the store has them. Defaults to ``None``:
            there is no store.

    Raises:
        ValueError: when the list is empty, or naming each file with what was found in it and what is allowed.
    """
    if not cases:
        raise ValueError("the list of cases is empty: there is nothing to train on, evaluate or segment.")
    problems, warnings = [], []
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = pool.map(lambda case: _check_case(case, in_channels, out_channels, plan, cache_dir), cases)
        for errors, notes in tqdm(results, total=len(cases), desc="checking data", disable=not sys.stderr.isatty()):
            problems += errors
            warnings += notes
    for note in warnings:
        logger.warning(note)
    if problems:
        shown = "\n  ".join(problems[:MAX_SHOWN])
        more = f"\n  ... and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise ValueError(f"{len(problems)} problem(s) in {len(cases)} cases:\n  {shown}{more}")


def check_folders(**folders: str) -> None:
    """
    Make folders and see that files can be written to them.

    Args:
        folders: the folders, each by the name of the option that sets it.

    Raises:
        ValueError: naming the option, the folder and the reason.
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


def _check_case(
    case: dict, in_channels: int, out_channels: int | None, plan: Mapping | None, cache_dir: str | None
) -> tuple[list[str], list[str]]:
    """Return (problems, warnings) of one case."""
    stored = None if cache_dir is None else stored_content(case, plan, cache_dir)
    if stored is not None:
        return _check_stored(case, *stored, in_channels, out_channels)
    try:
        paths = ensure_tuple(case["image"])  # one file, or one per channel
        first, problems = None, []
        if len(paths) > 1 and len(paths) != in_channels:
            problems.append(f"{case['id']}: has {len(paths)} channel files; in_channels is {in_channels}.")
        for path in paths:
            values, affine = _read(path)
            first = first or (paths[0], values.shape[:3], affine)
            problems += _image_problems(path, values, in_channels if len(paths) == 1 else 1)
            problems += _grid_problems(path, values, affine, first)
        if out_channels is None or "label" not in case:
            return problems, []
        classes, affine = _read(case["label"])
        problems += _grid_problems(case["label"], classes, affine, first)
        label_problems, warnings = _label_problems(case["label"], classes, out_channels)
        return problems + label_problems, warnings
    except ValueError as error:
        return [str(error)], []


def _check_stored(
    case: dict, channels: int, labels: list[int], in_channels: int, out_channels: int
) -> tuple[list[str], list[str]]:
    problems = []
    if channels != in_channels:
        problems.append(f"{case['id']}: has {channels} channel(s); in_channels is {in_channels}.")
    label_problems, warnings = _label_problems(case["label"], np.reshape(labels, (-1, 1, 1)), out_channels)
    return problems + label_problems, warnings


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a file's values, ``(X, Y, Z)`` or with the channels last, NIfTI's in their own type, and its affine."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: the file does not exist.")
    try:
        if is_nifti(path):
            image = nib.load(path)
            return np.asanyarray(image.dataobj), image.affine
        values, affine = read_image(path)
    except Exception as error:  # nibabel, gzip and zlib each have their own for a broken file
        raise ValueError(f"{path}: cannot be read as an image: {type(error).__name__}: {error}") from error
    return (values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)), affine


def _image_problems(path: str, values: np.ndarray, in_channels: int) -> list[str]:
    channels = values.shape[3] if values.ndim == 4 else 1
    if values.ndim not in (3, 4):
        return [f"{path}: has {values.ndim} axes of shape {values.shape}; expected 3, or 4 with the channels last."]
    if channels != in_channels:
        return [f"{path}: has {channels} channel(s) (shape {values.shape}); in_channels is {in_channels}."]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return [f"{path}: holds {int((~np.isfinite(values)).sum())} voxels that are NaN or infinite."]
    return [] if values.any() else [f"{path}: every voxel is zero."]


def _grid_problems(path: str, values: np.ndarray, affine: np.ndarray, first: tuple) -> list[str]:
    """What keeps a file from lying on the grid of the case's first one, ``(path, shape, affine)``."""
    try:
        check_grid(path, values.shape[:3], affine, *first)
    except ValueError as error:
        return [str(error)]
    return []


def _label_problems(path: str, values: np.ndarray, out_channels: int) -> tuple[list[str], list[str]]:
    if values.ndim != 3 and values.shape[3:] != (1,):
        return [f"{path}: has shape {values.shape}; a label has three axes and one value per voxel."], []
    found = np.unique(values)
    wrong = [value for value in found.tolist() if not (float(value).is_integer() and 0 <= value < out_channels)]
    if wrong:
        return [
            f"{path}: holds the label value(s) {', '.join(f'{v:g}' for v in wrong[:8])}; "
            f"allowed are the whole numbers 0 to {out_channels - 1} (out_channels is {out_channels})."
        ], []
    return [], [] if found.any() else [f"{path}: has no foreground; its patches are drawn at random places."]
