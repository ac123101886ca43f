"""Pairs of files in two folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.io import ENDINGS, check_grid, file_ending, read_label, strip_ending, without_pictures
from ..preprocessing.geometry import spacing_of

__all__ = ["FileStates", "Pair", "file_state", "files_by_case", "naming_files", "pair_cases", "read_pair"]


class Pair(NamedTuple):
    """The files of a case."""

    prediction: str
    reference: str


def file_state(path: str | PathLike) -> tuple[int, int] | None:
    """Return size and time of modification (ns) of a file, by which a change is seen; ``None`` without a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class FileStates:
    """
    The files of cases as they are now, to find out later which of them have been changed in the meantime.

    Args:
        files: the files of each case, by case id.
    """

    def __init__(self, files: Mapping[str, Sequence[str]]) -> None:
        self.states = {case: {path: file_state(path) for path in paths} for case, paths in files.items()}

    def changed(self) -> dict[str, str]:
        """Return a message for each case of which a file has been changed, by case id."""
        found = {}
        for case, states in self.states.items():
            paths = [path for path, state in states.items() if file_state(path) != state]
            if paths:
                found[case] = f"{paths[0]}: was changed while it was in use; run again when it is complete."
        return found


def naming_files(problems: Mapping[str, str], files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the messages of cases that failed, each with the first file of its case if it names none of its files."""
    return {
        case: text if any(path in text for path in files[case]) else f"{files[case][0]}: {text}"
        for case, text in problems.items()
    }


def files_by_case(directory: str | PathLike) -> dict[str, str]:
    """
    Return the files of a folder with one of the ``ENDINGS`` of images, by case id, sorted.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there is no such file, or if two files have the same case id.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder.")
    files: dict[str, str] = {}
    images = [path for path in folder.iterdir() if file_ending(path) and path.name[0] != "." and path.is_file()]
    for path in without_pictures(sorted(images)):
        case = strip_ending(path)
        if case in files:
            raise ValueError(f"{folder}: {Path(files[case]).name} and {path.name} are files of the same case.")
        files[case] = str(path)
    if not files:
        raise ValueError(f"{folder}: contains no file ending in {', '.join(ENDINGS)}.")
    return dict(sorted(files.items()))


def pair_cases(
    prediction_dir: str | PathLike, label_dir: str | PathLike | Mapping[str, str], allow_missing: bool = False
) -> tuple[dict[str, Pair], dict[str, str]]:
    """
    Pair predictions and reference labels by case id.

    Args:
        prediction_dir: folder of the predictions.
        label_dir: folder of the labels, whose endings may differ; or the label files by case id.
        allow_missing: leave out labels without a prediction, as when one fold was predicted. Defaults to ``False``.

    Returns:
        the pairs, sorted by case id, and a message for each case that is in one of the folders only.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if a folder has no file, two files of one case, or no case in common with the other.
    """
    predictions = files_by_case(prediction_dir)
    references = dict(label_dir) if isinstance(label_dir, Mapping) else files_by_case(label_dir)
    label_dir = "the data set" if isinstance(label_dir, Mapping) else label_dir
    pairs = {case: Pair(file, references[case]) for case, file in predictions.items() if case in references}
    if not pairs:
        raise ValueError(
            f"{prediction_dir} and {label_dir} have no case in common: files are paired by name, as in "
            f"{Path(next(iter(predictions.values()))).name} and {Path(next(iter(references.values()))).name}."
        )
    problems = {case: f"{file}: no label in {label_dir}." for case, file in predictions.items() if case not in pairs}
    if not allow_missing:
        missing = {case: file for case, file in references.items() if case not in pairs}
        problems |= {case: f"{file}: no prediction in {prediction_dir}." for case, file in missing.items()}
    return pairs, problems


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """
    Read prediction and reference of a case.

    Returns:
        both label maps, integers ``(X, Y, Z)``, and the spacing of the reference in mm.

    Raises:
        ValueError: if a file is not a label map, or their grids differ. The message names the file.
    """
    reference, reference_affine = read_label(pair.reference)
    prediction, affine = read_label(pair.prediction)
    check_grid(pair.prediction, prediction.shape, affine, pair.reference, reference.shape, reference_affine)
    return prediction, reference, tuple(float(edge) for edge in spacing_of(reference_affine))
