"""Training patches by the original's rule: which case, forced foreground or not, which voxel, and padded overhang.

Three pieces work together. :py:class:`EpochSampler` counts positions, 250 batches an epoch, and goes on counting in the
next epoch. :py:class:`PatchDataset` turns a position into a case (uniform, with replacement), a slot of the batch, and
a seed for all random transforms; so a patch depends on the seed and its position only, not on the number of worker
processes, and a resumed run continues exactly. :py:class:`RandPatchd` draws the patch and reads no more of a
memory-mapped case than the patch needs.

Source: nnU-Net v1's ``DataLoader3D`` as MIC-DKFZ/MedNeXt uses it, written anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset, MetaTensor
from monai.transforms import MapTransform, Randomizable, apply_transform
from monai.utils import ensure_tuple_rep
from torch.utils.data import Sampler

from ..memory import empty
from ..preprocessing.foreground import foreground_locations
from .spatial import MODES, RandRotateScaled, homogeneous, interpolate_box, on_new_grid, working_dtype

__all__ = [
    "BATCHES_PER_EPOCH",
    "EpochSampler",
    "PatchDataset",
    "RandPatchd",
    "is_forced_slot",
    "read_box",
]

BATCHES_PER_EPOCH = 250  # the original's epoch
OVERSAMPLE_FOREGROUND = 0.33  # the original's share of a batch that is forced onto foreground


def is_forced_slot(slot: int, batch_size: int) -> bool:
    """Whether slot ``slot`` (from 0) of a batch must hold foreground: of two slots always the second."""
    return slot >= round(batch_size * (1 - OVERSAMPLE_FOREGROUND))


def _opened(value: Any) -> Any:
    """An array or tensor as it is; the path of an ``.npy`` file memory-mapped."""
    return np.load(value, mmap_mode="r") if isinstance(value, (str, PathLike)) else value


def read_box(
    array: np.ndarray | torch.Tensor,
    start: Sequence[int],
    size: Sequence[int],
    fill: float,
    mode: str,
    reuse_memory: bool = False,
) -> torch.Tensor:
    """
    A copy of a box of a volume, padded where it overhangs. Of a memory-mapped array only the box is read.

    Args:
        array: ``(C, X, Y, Z)`` or ``(X, Y, Z)``.
        start: first voxel of the box, may be negative.
        size: size of the box in voxels.
        fill: value outside the volume.
        mode: "image" for float32; "label" for int8 if stored so, else int16.
        reuse_memory: whether to allocate with :py:func:`mednext_monai.memory.empty`. Defaults to ``False``.

    Returns:
        ``(C, *size)``, with one channel for an array without channels; never shares memory with ``array``.
    """
    array = array[None] if array.ndim == 3 else array
    array = array.as_tensor() if isinstance(array, MetaTensor) else array
    low = [min(max(b, 0), n) for b, n in zip(start, array.shape[1:])]
    high = [min(max(b + s, 0), n) for b, s, n in zip(start, size, array.shape[1:])]
    part = array[(slice(None), *(slice(a, b) for a, b in zip(low, high)))]
    stored = part.dtype if isinstance(part, torch.Tensor) else torch.from_numpy(np.empty(0, part.dtype)).dtype
    allocate = empty if reuse_memory else torch.empty
    out = allocate((len(array), *size), dtype=working_dtype(stored, mode))
    inside = out
    for axis, (a, b, first) in enumerate(zip(low, high, start), start=1):  # fill what overhangs, axis by axis
        inside.narrow(axis, 0, a - first).fill_(fill)
        inside.narrow(axis, b - first, inside.shape[axis] - (b - first)).fill_(fill)
        inside = inside.narrow(axis, a - first, b - a)
    if isinstance(part, torch.Tensor):
        inside.copy_(part)
    else:
        inside.numpy()[...] = part
    return out


class RandPatchd(MapTransform, Randomizable):
    """
    Dictionary transform: cut one training patch out of a case, by the original's rule.

    A random patch begins at a uniform voxel such that it stays inside (with an augmentation: the original's range,
    which begins one voxel before the volume). A forced patch has one voxel of a class at its centre: the class uniform
    among those present, then the voxel uniform among its stored locations. Towards the low end the patch is pushed
    inside, towards the high end it overhangs. What overhangs is filled. A case without foreground gives a random patch.

    Written for this package: MONAI's ``RandCropByPosNegLabeld`` favours large classes, and it and
    ``RandCropByLabelClassesd`` keep patches inside, cannot follow slots, and need the volume in memory.

    With an ``augmentation``, rotation and scaling are drawn first, and only the part of the volume that they need is
    read: the patch alone when neither fires. The output is the same as from the 205-voxel box that the original loads.

    Input: per key an array, tensor or the path of an ``.npy`` file, ``(C, X, Y, Z)`` or ``(X, Y, Z)``; under
    ``foreground_key`` a dictionary class to ``(n, 3)`` voxels, or the path of an ``.npz`` file with one array per
    class, named by the class; when the key is missing, the last label is searched, which is slow. Output: per key a
    tensor ``(C, *patch_size)``, images float32, labels int16 (int8 if stored so) with -1 outside; the foreground and
    slot entries are removed. With MONAI's ``set_track_meta`` on (its default) these are ``MetaTensor``, whose
    ``affine`` is the input's (identity for plain arrays) times the patch's place. Not lazy, not invertible.

    Args:
        keys: keys of images and labels on one grid.
        patch_size: in voxels, one number or three.
        mode: "image" or "label" per key, or one for all. Defaults to ("image", "label").
        augmentation: rotation and scaling to carry out while reading; its ``mode``, ``keys`` and ``spatial_size`` are
            not used. Defaults to ``None``, as for validation.
        foreground_key: key of the locations. Defaults to "foreground".
        slot_key: key of a flag set by :py:class:`PatchDataset`: whether this patch is forced onto foreground.
            Defaults to "force_foreground".
        foreground_prob: how often to force where there is no such flag. Defaults to 0.5, the original's share at
            batch size 2.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: unknown mode; volumes of one case with different sizes; none of the keys is in the data.
    """

    fill = {"image": 0.0, "label": -1.0}

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: int | Sequence[int],
        mode: str | Sequence[str] = ("image", "label"),
        augmentation: RandRotateScaled | None = None,
        foreground_key: str = "foreground",
        slot_key: str = "force_foreground",
        foreground_prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if any(m not in MODES for m in self.mode):
            raise ValueError(f"mode must be one of {MODES}, got {mode}.")
        self.patch_size = ensure_tuple_rep(patch_size, 3)
        self.augmentation = augmentation
        self.foreground_key, self.slot_key = foreground_key, slot_key
        self.foreground_prob = foreground_prob
        self.box_size = self.patch_size if augmentation is None else augmentation.box_size(self.patch_size)
        self.start: tuple[int, ...] | None = None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPatchd:
        super().set_random_state(seed, state)
        if self.augmentation is not None:
            self.augmentation.set_random_state(state=self.R)
        return self

    def randomize(self, shape: Sequence[int], locations: Mapping[Any, np.ndarray] | None) -> None:
        """
        Draw ``start``, the first voxel of the patch, and the augmentation.

        Args:
            shape: three sizes of the case.
            locations: class to voxels, for a forced patch; ``None`` or empty for a random one.
        """
        need = [max(b - p, b - n) for b, p, n in zip(self.box_size, self.patch_size, shape)]
        low = [-need_d // 2 for need_d in need]  # floor of a negative number: the original's one voxel
        if locations:
            names = sorted(locations, key=int)
            voxels = locations[names[self.R.randint(len(names))]]
            voxel = voxels[self.R.randint(len(voxels))]
            box = [max(int(v) - b // 2, a) for v, b, a in zip(voxel, self.box_size, low)]
        else:
            high = [n + need_d // 2 + need_d % 2 - b for n, need_d, b in zip(shape, need, self.box_size)]
            box = [int(self.R.randint(a, b + 1)) for a, b in zip(low, high)]
        self.start = tuple(a + (b - p) // 2 for a, b, p in zip(box, self.box_size, self.patch_size))
        if self.augmentation is not None:
            self.augmentation.randomize()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        volumes = {key: _opened(d[key]) for key in self.key_iterator(d)}
        shapes = {key: tuple(int(n) for n in volume.shape[-3:]) for key, volume in volumes.items()}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"images and labels of a case must have one size, got {shapes}.")
        forced = d.pop(self.slot_key) if self.slot_key in d else self.R.uniform() < self.foreground_prob
        foreground = d.pop(self.foreground_key, None)
        shape = next(iter(shapes.values()))
        if forced:
            with self._locations(foreground, volumes) as locations:
                self.randomize(shape, locations)
        else:
            self.randomize(shape, None)
        for key, mode in self.key_iterator(d, self.mode):
            out, to_input = self._patch(volumes[key], mode)
            d[key] = on_new_grid(out, d[key], to_input)
        return d

    def _locations(self, foreground: Any, volumes: Mapping[Hashable, Any]) -> AbstractContextManager[Mapping]:
        if isinstance(foreground, (str, PathLike)):
            return np.load(foreground)  # reads the class that is drawn, no other
        if foreground is None:
            labels = [volumes[key] for key, mode in zip(self.keys, self.mode) if mode == "label" and key in volumes]
            label = np.asarray(labels[-1]) if labels else np.zeros((0, 0, 0))
            foreground = foreground_locations(label.reshape(label.shape[-3:]))
        return nullcontext({value: voxels for value, voxels in foreground.items() if len(voxels)})

    def _patch(self, volume: np.ndarray | torch.Tensor, mode: str) -> tuple[torch.Tensor, np.ndarray]:
        """The drawn patch, ``(C, *patch_size)``, and the matrix ``(4, 4)`` from its voxels to the volume's."""
        fill = self.fill[mode]
        draw = None if self.augmentation is None else self.augmentation.draw(self.patch_size, self.box_size)
        if draw is None:
            patch = read_box(volume, self.start, self.patch_size, fill, mode)
            return patch, homogeneous(np.eye(3), self.start)
        margin = (np.asarray(self.box_size) - self.patch_size) // 2
        box_start = np.asarray(self.start) - margin
        start, size = draw.needed(self.patch_size, mode)
        part = read_box(volume, tuple(box_start + start), tuple(size), fill, mode, reuse_memory=True)
        patch = interpolate_box(part, draw, start, self.patch_size, mode)
        return patch, homogeneous(draw.matrix, draw.offset + box_start)


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

    def __getitem__(self, index: int) -> Any:
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
