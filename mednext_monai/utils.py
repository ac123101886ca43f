"""Small functions that bundle configs call: seeding, and waiting for each other in a distributed run."""

from __future__ import annotations

import logging
import random
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from monai.utils import set_determinism

__all__ = ["set_seed", "wait_for_all"]

logger = logging.getLogger(__name__)


def set_seed(seed: int | None, rank: int = 0) -> int:
    """
    Seed all random generators of this process and return the run's seed, which decides all training patches.

    With ``None`` a fresh seed is drawn, the same in all processes of a distributed run, and cuDNN may look for its
    fastest algorithms, which do not repeat a run to the last bit.

    Args:
        seed: a whole number from 0 for a run that can be repeated; ``None`` as published.
        rank: added to the seed for this process's own generators.

    Raises:
        ValueError: when the seed is no such number.
    """
    if seed is None:
        box = [random.SystemRandom().randrange(2**31)]
        if dist.is_initialized():
            dist.broadcast_object_list(box)
        fresh = box[0]
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(fresh + rank)
        np.random.seed(fresh + rank)
        random.seed(fresh + rank)
    elif isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32 - 2**16:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 2**16 - 1}, or None, got {seed!r}.")
    else:
        fresh = seed
        set_determinism(seed=seed + rank)
    if rank == 0:
        logger.info(f"seed {fresh}" + (", drawn for this run (a resumed one keeps its own)" if seed is None else ""))
    return fresh


def wait_for_all() -> None:
    """
    Wait until every process of a distributed run has come here; a single process goes on at once.

    Unlike ``torch.distributed.barrier`` it does not give up after the process group's timeout, some minutes, which the
    main process's work on a large data set exceeds.
    """
    if dist.is_initialized():
        dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=30)))
