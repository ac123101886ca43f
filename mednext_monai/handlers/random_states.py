"""Reproducible random numbers: seeding a run, and the states of its generators in a checkpoint."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from monai.utils import set_determinism

__all__ = ["RandomStates", "set_seed"]

logger = logging.getLogger(__name__)
MAX_SEED = 2**32 - 2**16 - 1  # plus the rank it must stay below NumPy's limit


def set_seed(seed: int | None, rank: int = 0) -> int:
    """
    Seed all random generators of this process and return the seed of the run, which determines all training patches.

    With ``None`` a new seed is drawn, the same in all processes of a distributed run, and cuDNN may select its fastest
    algorithms, which are not deterministic.

    Args:
        seed: non-negative integer for a reproducible run; ``None`` as published.
        rank: added to the seed for the generators of this process. Defaults to 0.

    Raises:
        ValueError: if the seed is not an integer in the allowed range.
    """
    if seed is None:
        box = [random.SystemRandom().randrange(2**31)]
        if dist.is_initialized():
            dist.broadcast_object_list(box)
        run_seed = box[0]
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(run_seed + rank)
        np.random.seed(run_seed + rank)
        random.seed(run_seed + rank)
    elif isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be an integer from 0 to {MAX_SEED}, or None, got {seed!r}.")
    else:
        run_seed = seed
        set_determinism(seed=seed + rank)
    if rank == 0:
        drawn = ", drawn for this run (a resumed run keeps its own)" if seed is None else ""
        logger.info(f"seed {run_seed}{drawn}")
    return run_seed


class RandomStates:
    """
    The states of this process's random generators (torch on CPU and GPU, NumPy, Python), as an item of a checkpoint.

    The state dict holds only tensors and plain numbers, so that torch's weights-only loader accepts it.

    Args:
        device: the device whose generator is included if it is a GPU. Defaults to ``"cpu"``.
        is_main_process: whether loading sets the generators of this process. A checkpoint holds the states of the main
            process only; the others keep theirs. Defaults to ``True``.
    """

    def __init__(self, device: torch.device | str = "cpu", is_main_process: bool = True) -> None:
        self.device = torch.device(device)
        self.is_main_process = is_main_process

    def state_dict(self) -> dict:
        name, keys, *numpy_rest = np.random.get_state()
        states = {
            "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *numpy_rest),
            "python": random.getstate(),
        }
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def load_state_dict(self, state: Mapping) -> None:
        """
        Args:
            state: what ``state_dict`` returned, with tensors on the CPU.
        """
        if not self.is_main_process:
            return
        torch.set_rng_state(state["torch"])
        name, keys, *numpy_rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *numpy_rest))
        random.setstate(state["python"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
