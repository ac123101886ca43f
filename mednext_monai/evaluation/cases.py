"""Pairs of files in two folders, and work on many cases in several processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..data.io import ENDINGS, check_grid, file_ending, read_label, strip_ending
from ..preprocessing.geometry import spacing_of

__all__ = ["Pair", "files_by_case", "map_cases", "pair_cases", "read_pair"]


class Pair(NamedTuple):
    """The files of a case."""

    prediction: str
    reference: str


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
    for path in sorted(folder.iterdir()):
        if file_ending(path) and path.name[0] != "." and path.is_file():
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


def map_cases(
    function: Callable[[Any], Any], cases: Mapping[str, Any], processes: int | None = None, description: str = "cases"
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Call a function for every case; a case that fails does not stop the others.

    If a process is killed, for example because memory ran out, the unfinished cases are repeated one at a time.

    Args:
        function: called with the argument of a case; a function of a module, or a ``functools.partial`` of one.
        cases: its argument by case id.
        processes: number of processes; 1 works in this process. Defaults to ``None``: one per available core.
        description: text beside the progress bar. Defaults to ``"cases"``.

    Returns:
        the results by case id, in the order of ``cases``, and the messages of the cases that failed.

    Raises:
        ValueError: if ``processes`` is less than 1.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}.")
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(cases))
    count = count if processes is None else min(processes, len(cases))
    outcomes: dict[str, tuple[bool, Any]] = {}
    with tqdm(total=len(cases), desc=description, disable=not sys.stderr.isatty()) as bar:
        if count < 2:
            for case, argument in cases.items():
                outcomes[case] = _attempt(function, argument)
                bar.update()
        else:
            _run_parallel(function, dict(cases), count, outcomes, bar)
            for case in cases.keys() - outcomes.keys():  # a process was killed: find the case
                _run_parallel(function, {case: cases[case]}, 1, outcomes, bar)
    lost = (False, "the process that worked on this case was killed, probably because memory ran out.")
    ordered = {case: outcomes.get(case, lost) for case in cases}
    results = {case: value for case, (succeeded, value) in ordered.items() if succeeded}
    return results, {case: value for case, (succeeded, value) in ordered.items() if not succeeded}


def _attempt(function: Callable[[Any], Any], argument: Any) -> tuple[bool, Any]:
    """Return whether the function succeeded, and its result or the message of its error."""
    try:
        return True, function(argument)
    except (ValueError, OSError) as error:
        return False, str(error)
    except MemoryError:
        return False, "not enough memory for this case."


def _run_parallel(
    function: Callable[[Any], Any], cases: dict[str, Any], processes: int, outcomes: dict, bar: tqdm
) -> None:
    # Fork if possible: torch is not imported again, and the caller's script needs no __main__ guard. As in torch's data
    # loaders, a worker uses one thread, since those of OpenMP do not survive a fork.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_use_one_thread) as pool:
        futures = {pool.submit(_attempt, function, argument): case for case, argument in cases.items()}
        try:
            for future in as_completed(futures):
                try:
                    outcomes[futures[future]] = future.result()
                except BrokenProcessPool:
                    continue
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _use_one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
