"""Preprocessing of a whole data set before its training, or of parts of it on several computers."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping

from .checks import Expected, check_stored, checked_arrays
from .dataset import select_part, training_cases
from .store import CasesError, preprocess_dataset, settings_folder

__all__ = ["prepare_cases"]

logger = logging.getLogger(__name__)


def prepare_cases(
    dataset_dir: str,
    in_channels: int,
    out_channels: int,
    settings: Mapping,
    cache_dir: str,
    part: int = 0,
    parts: int = 1,
    processes: int | None = None,
    progress: bool = False,
    spatial_dims: int | None = None,
    slice_axis: int | None = None,
) -> None:
    """
    Check, preprocess and store all cases of a data set, or a part of them, whatever fold they are in.

    A training with the same settings and ``cache_dir`` finds them and begins at once. Cases that are stored already are
    skipped, so that a run that was interrupted is completed by the same call. A case that is invalid, or that kills its
    process, does not stop the others. Parts have no case in common and can run at once, in any number, on computers
    that share a file system; so can calls for all cases, which share the work. :py:mod:`~mednext_monai.data.store` says
    why this is safe.

    Args:
        dataset_dir: the data set, see :py:func:`~mednext_monai.data.read_dataset`.
        in_channels: number of image channels.
        out_channels: number of classes, background included.
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: folder for the stored cases; created if needed.
        part: which part, from 0 to ``parts - 1``: every ``parts``-th case, sorted by id. Defaults to 0.
        parts: number of parts. Defaults to 1.
        processes: number of processes. Defaults to ``None``: one per CPU core, at most 8.
        progress: whether to show a progress bar; without one, the log has a line per minute. Defaults to ``False``.
        spatial_dims, slice_axis: see :py:class:`~mednext_monai.data.checks.Expected`. Default to ``None``.

    Raises:
        DatasetError: if the data set is invalid.
        ValueError: if ``part`` is not one of the parts.
        CasesError: if cases are invalid; the message lists them. All others are stored.
        OSError: if there is not enough disk space.
    """
    started = time.monotonic()
    cases = select_part(training_cases(dataset_dir, "all"), part, parts)
    ignored = settings.get("ignore_label")
    expected = Expected(
        in_channels, out_channels, ignore_label=ignored, spatial_dims=spatial_dims, slice_axis=slice_axis
    )
    problems = {case["id"]: " ".join(check_stored(case, expected, settings, cache_dir)) for case in cases}
    failures = {case_id: text for case_id, text in problems.items() if text}
    read = functools.partial(checked_arrays, expected=expected)
    try:
        valid = [case for case in cases if case["id"] not in failures]
        preprocess_dataset(valid, settings, cache_dir, processes, progress, read)
    except CasesError as error:
        failures |= error.failures
    if failures:
        raise CasesError(failures, len(cases))
    which = f"part {part} of {parts}: " if parts > 1 else ""
    seconds = time.monotonic() - started
    logger.info(f"{which}{len(cases)} cases are stored in {cache_dir}/{settings_folder(settings)} ({seconds:.1f} s)")
