"""The cases of one fold as training reads them: preprocessed once, stored, shared by folds, variants and kernels."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

from ..preprocessing.case_store import plan_folder, preprocess_dataset

__all__ = ["preprocessed_cases"]

logger = logging.getLogger(__name__)


def preprocessed_cases(
    training: Sequence[Mapping],
    validation: Sequence[Mapping],
    plan: Mapping,
    cache_dir: str,
    num_workers: int = 0,
    progress: bool = False,
    is_main_process: bool = True,
) -> dict[str, list[dict]]:
    """
    Preprocess the cases of both sides of a fold that are not stored yet, and say where all of them lie.

    In a distributed run the main process does the work and the others wait for it, however long it takes; call it in
    all of them.

    Args:
        training: cases as :py:func:`training_cases` gives them.
        validation: the same; a case may be on both sides.
        plan: see :py:func:`mednext_monai.preprocessing.case.check_plan`.
        cache_dir: folder of the store, see :py:mod:`mednext_monai.preprocessing.case_store`.
        num_workers: processes; 0 works in this one. Defaults to 0.
        progress: whether to show a bar. Defaults to ``False``.
        is_main_process: whether this process does the work. Defaults to ``True``.

    Returns:
        ``{"training": [...], "validation": [...]}``, of each case its ``id``, and the files ``image``, ``label``
        (``.npy``), ``foreground`` (``.npz``) and ``info`` (``.json``).

    Raises:
        ValueError: listing every case that is wrong, or naming what is wrong in the plan.
        OSError: when the disk lacks the space.
    """
    cases = list({case["id"]: case for case in (*training, *validation)}.values())
    if not is_main_process:
        _wait_for_all()
    started = time.monotonic()
    stored = preprocess_dataset(cases, plan, cache_dir, num_workers, progress)
    if is_main_process:
        seconds = time.monotonic() - started
        logger.info(f"{len(cases)} cases are preprocessed in {cache_dir}/{plan_folder(plan)} ({seconds:.1f} s)")
        _wait_for_all()
    files = {case["id"]: {key: case[key] for key in ("id", "image", "label", "foreground", "info")} for case in stored}
    sides = {"training": training, "validation": validation}
    return {side: [files[case["id"]] for case in members] for side, members in sides.items()}


def _wait_for_all() -> None:
    """
    Wait until all processes of a distributed run have reached this point; a single process continues immediately.

    Unlike ``torch.distributed.barrier`` it does not fail after the timeout of the process group, some minutes, which
    preprocessing of a large data set exceeds.
    """
    if dist.is_initialized():
        dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=30)))
