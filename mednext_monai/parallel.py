"""Work on many cases in several processes: neither a case that fails nor a process that is killed stops the others.

Imports neither torch nor MONAI, so that worker processes start quickly.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

__all__ = ["map_cases"]

logger = logging.getLogger(__name__)
LOG_INTERVAL = 60.0  # seconds between two lines of the log, where no bar shows the progress
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
KILLED = "the process that worked on this case was killed, probably because memory ran out."
Outcome = tuple[bool, Any]  # whether a case succeeded, and its result or the message of its error


def map_cases(
    function: Callable[[Any], Any],
    cases: Mapping[str, Any],
    processes: int | None = None,
    description: str = "cases",
    progress: bool | None = None,
    spawn: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Call a function for every case; a case that fails does not stop the others.

    If a process is killed, for example because memory ran out, the unfinished cases are repeated by half as many
    processes. A case that kills the only process is given up, and the others go on. If the calling process is killed,
    the processes end, too.

    Args:
        function: called with the argument of a case; a function of a module, or a ``functools.partial`` of one. A
            ``ValueError``, an ``OSError`` and a lack of memory are errors of the case; any other ends the work.
        cases: its argument by case id.
        processes: number of processes; 1 works in this process. Defaults to ``None``: one per available core.
        description: text beside the progress bar. Defaults to ``"cases"``.
        progress: whether to show a progress bar; without one, the log has a line per minute. Defaults to ``None``: on
            a terminal.
        spawn: start the processes anew, which takes seconds, instead of forking this one where the system can. Needed
            where this process uses a GPU or several threads. A script that calls this at its top level then needs
            ``if __name__ == "__main__":``. Defaults to ``False``.

    Returns:
        the results by case id, in the order of ``cases``, and the messages of the cases that failed.

    Raises:
        ValueError: if ``processes`` is less than 1.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}.")
    count = min(_cores() if processes is None else processes, len(cases))
    outcomes: dict[str, Outcome] = {}
    with _shown_progress(len(cases), description, progress) as advance:
        if count < 2:
            for case, argument in cases.items():
                outcomes[case] = _attempt(function, argument)
                advance()
        else:
            _run_parallel(function, cases, count, spawn, outcomes, advance)
    ordered = {case: outcomes[case] for case in cases}
    results = {case: value for case, (succeeded, value) in ordered.items() if succeeded}
    return results, {case: value for case, (succeeded, value) in ordered.items() if not succeeded}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _shown_progress(total: int, description: str, progress: bool | None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each case, which advances the bar or, from time to time, writes to the log."""
    shown = sys.stderr.isatty() if progress is None else progress
    started = logged = time.monotonic()
    done = 0
    with tqdm(total=total, desc=description, unit="case", disable=not (shown and total)) as bar:

        def advance() -> None:
            nonlocal done, logged
            done += 1
            bar.update()
            now = time.monotonic()
            if not shown and done < total and now - logged >= LOG_INTERVAL:
                logged = now
                left = timedelta(seconds=round((now - started) / done * (total - done)))
                logger.info(f"{description}: {done} of {total} cases, about {left} left")

        yield advance


def _attempt(function: Callable[[Any], Any], argument: Any) -> Outcome:
    """Return whether the function succeeded, and its result or the message of its error."""
    try:
        return True, function(argument)
    except (ValueError, OSError) as error:
        return False, str(error) or type(error).__name__
    except MemoryError:
        return False, "not enough memory for this case."


def _run_parallel(
    function: Callable[[Any], Any],
    cases: Mapping[str, Any],
    processes: int,
    spawn: bool,
    outcomes: dict[str, Outcome],
    advance: Callable[[], None],
) -> None:
    """Run the cases, in fewer processes after one was killed, until there is an outcome for each."""
    count = processes
    while remaining := {case: argument for case, argument in cases.items() if case not in outcomes}:
        if _run_pool(function, remaining, min(count, len(remaining)), spawn, outcomes, advance):
            continue
        if count == 1:  # the first without an outcome killed it, since one process works in their order
            culprit = next(case for case in remaining if case not in outcomes)
            outcomes[culprit] = (False, KILLED)
            advance()
            count = processes
        else:
            count //= 2


def _run_pool(
    function: Callable[[Any], Any],
    cases: Mapping[str, Any],
    processes: int,
    spawn: bool,
    outcomes: dict[str, Outcome],
    advance: Callable[[], None],
) -> bool:
    """Run the cases in a pool of processes, as far as possible; return whether no process was killed."""
    # With fork, torch is not imported again, and the caller's script needs no __main__ guard. As in torch's data
    # loaders, a worker uses one thread, since those of OpenMP do not survive a fork.
    method = "spawn" if spawn or "fork" not in multiprocessing.get_all_start_methods() else "fork"
    context = multiprocessing.get_context(method)
    is_whole = True
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool,
    ):
        try:
            futures = {pool.submit(_attempt, function, argument): case for case, argument in cases.items()}
            for future in as_completed(futures):
                try:
                    outcomes[futures[future]] = future.result()
                except BrokenProcessPool:
                    is_whole = False
                    continue
                advance()
        except BrokenProcessPool:  # while cases were submitted
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return is_whole


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Limit NumPy to one thread in processes that are started in this context: the processes use all cores."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this worker when its parent process ends; otherwise the workers of a pool would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is None:  # not in a worker
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
