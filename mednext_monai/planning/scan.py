"""One pass over all cases in parallel processes: each is read once, checked, and measured when nothing is wrong."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from ..data.dataset import Dataset, DatasetError
from .checks import CaseCheck, check_across_cases, check_case
from .fingerprint import CaseFingerprint, measure_case

__all__ = ["scan"]

MAX_PROCESSES = 8  # each holds one case in memory


def scan(
    dataset: Dataset, processes: int | None = None, progress: bool = True
) -> tuple[list[CaseFingerprint], list[str]]:
    """
    Check every case of a data set and measure it.

    Args:
        dataset: the data set.
        processes: number of parallel processes; 0 works in this one. Defaults to ``None``, one per CPU that this
            process may use, at most 8.
        progress: whether to show a progress bar (on stderr). Defaults to ``True``.

    Returns:
        the fingerprint of every case, in the order of ``dataset.cases``, and the warnings.

    Raises:
        DatasetError: when anything is wrong, with all problems of all cases.
        ValueError: when ``processes`` is negative.
        RuntimeError: when a process was ended from outside, for want of memory for example.
    """
    if processes is not None and processes < 0:
        raise ValueError(f"processes must be 0 or more, got {processes}.")
    if processes is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = min(cpus, MAX_PROCESSES)
    processes = min(processes, len(dataset.cases))
    bar = tqdm(total=len(dataset.cases), desc="checking", unit="case", disable=not progress)
    results: list = [None] * len(dataset.cases)
    with bar:
        if processes < 2:
            for i in range(len(dataset.cases)):
                results[i] = _scan_case(dataset, i)
                bar.update()
        else:
            _scan_parallel(dataset, processes, results, bar)
    checks = [check for check, _ in results]
    cases = [case for _, case in results if case is not None]
    voxels = np.sum([case.class_voxels for case in cases], axis=0) if cases else np.zeros(len(dataset.labels), int)
    problems, warnings = check_across_cases(dataset, checks, voxels)
    problems = [f"{check.id}: {line}" for check in checks for line in check.problems] + problems
    if problems:
        raise DatasetError(dataset.directory, problems)
    return cases, [f"{check.id}: {line}" for check in checks for line in check.warnings] + warnings


def _scan_case(dataset: Dataset, index: int) -> tuple[CaseCheck, CaseFingerprint | None]:
    case = dataset.cases[index]
    check, volume = check_case(case, dataset)
    return check, None if volume is None else measure_case(case["id"], volume, len(dataset.labels))


def _scan_parallel(dataset: Dataset, processes: int, results: list, bar: tqdm) -> None:
    # Forked where possible: no second import of torch, and no need for a __main__ guard in the caller's script. That is
    # safe since the workers use NumPy only: torch's OpenMP threads would not survive a fork.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(_scan_case, dataset, i): i for i in range(len(results))}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.update()
        except BrokenProcessPool as e:
            raise RuntimeError(
                "a process that was reading the images was ended from outside, perhaps because memory ran out; "
                f"try fewer than {processes} processes"
            ) from e
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
