"""The endless sequence of training patches: which case fills which slot of a batch, and with which random numbers.

:py:class:`EpochSampler` counts positions, 250 batches an epoch, and continues counting in the next epoch.
:py:class:`PatchDataset` turns a position into a case (uniform, with replacement), a slot of the batch, and a seed for
all random transforms. So a patch depends on the seed and its position only, not on the number of worker processes, and
a resumed run continues exactly. The patch itself is drawn by :py:class:`mednext_monai.transforms.RandPatchd`.

Source: nnU-Net v1's ``DataLoader3D`` as MIC-DKFZ/MedNeXt uses it, written anew.
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
    """Return whether slot ``slot`` (from 0) of a batch must hold foreground: of two slots always the second."""
    return slot >= round(batch_size * (1 - OVERSAMPLE_FOREGROUND))


class PatchDataset(Dataset):
    """
    Endless sequence of training patches; position ``i`` always gives the same patch.

    Position ``i`` fills slot ``i % batch_size`` of its batch: use it with an unshuffled loader of that batch size, or
    with :py:class:`EpochSampler`. The case is drawn uniformly with replacement. Every random transform is seeded from
    ``seed`` and ``i`` before use, whatever process does it. Do not share one instance between threads.

    Args:
        data: one dictionary per case, as :py:class:`RandPatchd` takes it.
        transform: transform of one case, normally a ``Compose`` that begins with :py:class:`RandPatchd`.
        batch_size: number of slots; with several processes, over all of them. Defaults to 2.
        batches_per_epoch: gives the dataset's length. Defaults to 250.
        seed: of the sequence. Defaults to 0.
        slot_key: key under which the slot's flag is handed to the transform. Defaults to "force_foreground".

    Raises:
        ValueError: no cases, or a batch size below 1.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Any,
        batch_size: int = 2,
        batches_per_epoch: int = BATCHES_PER_EPOCH,
        seed: int = 0,
        slot_key: str = "force_foreground",
    ) -> None:
        if len(data) == 0:
            raise ValueError("data must hold at least one case, got none.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        super().__init__(data, transform)
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.seed, self.slot_key = seed, slot_key

    def __len__(self) -> int:
        return self.batch_size * self.batches_per_epoch

    def draw(self, index: int) -> tuple[int, bool, int]:
        """Case number, whether foreground is forced, and the transforms' seed at a position."""
        # the two numbers seed the generator as a pair, so neighbouring seeds and positions share nothing
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
        return apply_transform(self.transform, {**self.data[case], self.slot_key: forced})


class EpochSampler(Sampler[int]):
    """
    Positions of one epoch after the other: epoch ``e`` is ``e * len(dataset)`` onwards, in order.

    Iterating moves on to the next epoch. To resume, restore :py:meth:`state_dict`, before the loader's worker processes
    start: they have a copy of the data set.

    Args:
        dataset: a :py:class:`PatchDataset`.
        rank: number of this process among those that share a batch. Defaults to 0.
        world_size: how many processes share a batch; the loader's batch size is the data set's divided by it, and
            each takes every ``world_size``-th slot. Defaults to 1.

    Raises:
        ValueError: the data set's batch size is not a multiple of ``world_size``, or ``rank`` is not below it.
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
        """The epoch to come and the data set's seed, which together say all patches to come."""
        return {"epoch": self.epoch, "seed": self.dataset.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with the epoch and the seed that :py:meth:`state_dict` gave."""
        self.epoch, self.dataset.seed = int(state["epoch"]), int(state["seed"])
