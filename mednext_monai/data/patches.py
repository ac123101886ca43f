"""The endless sequence of training patches: which case fills which slot of a batch, with which random seed.

:py:class:`EpochSampler` counts positions, 250 batches per epoch, continuing from epoch to epoch.
:py:class:`PatchDataset` turns a position into a case (uniform, with replacement), a slot of the batch, and a seed for
all random transforms. A patch therefore depends only on the seed and its position, not on the number of worker
processes, and a resumed run continues exactly. :py:class:`mednext_monai.transforms.RandPatchd` draws the patch itself.

Source: nnU-Net v1's ``DataLoader3D`` as MIC-DKFZ/MedNeXt uses it, reimplemented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import Dataset
from monai.transforms import Randomizable, apply_transform
from torch.utils.data import Sampler

__all__ = ["BATCHES_PER_EPOCH", "EpochSampler", "PatchDataset", "is_forced_slot"]

BATCHES_PER_EPOCH = 250  # the original's epoch
OVERSAMPLE_FOREGROUND = 0.33  # the original's share of a batch that is forced onto foreground


def is_forced_slot(slot: int, batch_size: int) -> bool:
    """Return whether slot ``slot`` (from 0) of a batch must contain foreground: the second of two slots."""
    return slot >= round(batch_size * (1 - OVERSAMPLE_FOREGROUND))


class PatchDataset(Dataset):
    """
    Endless sequence of training patches; position ``i`` always gives the same patch.

    Position ``i`` fills slot ``i % batch_size`` of its batch: use it with an unshuffled loader of that batch size, or
    with :py:class:`EpochSampler`. The case is drawn uniformly with replacement. Every random transform is seeded from
    ``seed`` and ``i`` before use, in any process. Do not share an instance between threads.

    Args:
        data: one dictionary per case, the input of :py:class:`RandPatchd`.
        transform: transform of one case, usually a ``Compose`` that starts with :py:class:`RandPatchd`.
        batch_size: number of slots, in total over all processes. Defaults to 2.
        batches_per_epoch: number of batches in the length of the data set. Defaults to 250.
        seed: seed of the sequence. Defaults to 0.
        slot_key: key of the flag that tells the transform whether the slot must contain foreground. Defaults
            to "force_foreground".
        stored: what is stored for each case, see :py:meth:`~mednext_monai.data.StoredCases.of`, and is transformed in
            its place. Defaults to ``None``: the cases are transformed.

    Raises:
        ValueError: if the batch size is below 1; when a patch is drawn, if there are no cases.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Any,
        batch_size: int = 2,
        batches_per_epoch: int = BATCHES_PER_EPOCH,
        seed: int = 0,
        slot_key: str = "force_foreground",
        stored: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        super().__init__(data, transform)
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.seed, self.slot_key = seed, slot_key
        self.stored = data if stored is None else stored

    def __len__(self) -> int:
        return self.batch_size * self.batches_per_epoch

    def draw(self, index: int) -> tuple[int, bool, int]:
        """Return case number, whether foreground is forced, and the seed of the transforms at a position."""
        if len(self.data) == 0:
            raise ValueError("data must contain at least one case, got none.")
        # the two numbers seed the generator as a pair, so neighboring seeds and positions are independent
        random = np.random.RandomState([self.seed & 0xFFFFFFFF, index])
        case = int(random.randint(len(self.data)))
        return case, is_forced_slot(index % self.batch_size, self.batch_size), int(random.randint(2**31))

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # an endless sequence has no slices
        index = int(index)
        if index < 0:
            raise IndexError(f"positions begin at 0, got {index}.")
        case, forced, seed = self.draw(index)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=seed)
        return apply_transform(self.transform, {**self.stored[case], self.slot_key: forced})


class EpochSampler(Sampler[int]):
    """
    Positions of successive epochs: epoch ``e`` has those from ``e * len(dataset)``, in order.

    Each iteration is one epoch. To resume, restore :py:meth:`state_dict` before the loader's worker processes start,
    since these hold a copy of the data set.

    Args:
        dataset: a :py:class:`PatchDataset`.
        rank: rank of this process among those that share a batch. Defaults to 0.
        world_size: number of processes that share a batch. The loader's batch size is that of the data set divided by
            it, and each process takes every ``world_size``-th slot. Defaults to 1.

    Raises:
        ValueError: if the data set's batch size is not a multiple of ``world_size``, or ``rank`` is out of range.
    """

    def __init__(self, dataset: PatchDataset, rank: int = 0, world_size: int = 1) -> None:
        if dataset.batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of world_size {world_size}, got {dataset.batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 ... {world_size - 1}, got {rank}.")
        self.dataset, self.rank, self.world_size = dataset, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset) // self.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)
        self.epoch += 1
        return iter(range(first + self.rank, first + len(self.dataset), self.world_size))

    def state_dict(self) -> dict[str, int]:
        """Return the next epoch and the data set's seed, which determine all following patches."""
        return {"epoch": self.epoch, "seed": self.dataset.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue with the epoch and seed of :py:meth:`state_dict`."""
        self.epoch, self.dataset.seed = int(state["epoch"]), int(state["seed"])
