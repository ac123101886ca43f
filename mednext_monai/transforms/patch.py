"""Drawing a training patch from a stored case, by the original's rules for its position and padding.

:py:mod:`mednext_monai.data.patches` selects the case, and whether the patch must contain foreground.

Source: nnU-Net v1's ``DataLoader3D`` and ``DataLoader2D`` as MIC-DKFZ/MedNeXt uses them, reimplemented.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from ..memory import empty
from ..preprocessing.foreground import ANNOTATED, foreground_locations
from .spatial import MODES, RandRotateScaled, homogeneous, interpolate_box, on_new_grid, working_dtype

__all__ = ["RandPatchd", "read_box", "volume_patch"]


def _opened(value: Any) -> Any:
    """Return an array or tensor unchanged, and memory-map the ``.npy`` file of a path."""
    if not isinstance(value, (str, PathLike)):
        return value
    with _damage_explained(value):
        return np.load(value, mmap_mode="r")


@contextmanager
def _damage_explained(path: str | PathLike) -> Iterator[None]:
    """Say which file of a stored case is damaged, and what to do."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, IndexError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} of a stored case cannot be read: {error}. Delete the folder that it is in; the next run "
            "preprocesses the case again."
        ) from error


def read_box(
    array: np.ndarray | torch.Tensor,
    start: Sequence[int],
    size: Sequence[int],
    fill: float,
    mode: str,
    reuse_memory: bool = False,
) -> torch.Tensor:
    """
    Return a copy of a box of a volume, padded outside. Of a memory-mapped array only the box is read.

    Args:
        array: ``(C, X, Y, Z)`` or ``(X, Y, Z)``.
        start: first voxel of the box; may be negative.
        size: size of the box in voxels.
        fill: value outside the volume.
        mode: "image" for float32; "label" for int8 if stored as int8, else int16.
        reuse_memory: whether to allocate with :py:func:`mednext_monai.memory.empty`. Defaults to ``False``.

    Returns:
        ``(C, *size)``, with one channel for an array without channels; shares no memory with ``array``.
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
    for axis, (a, b, first) in enumerate(zip(low, high, start), start=1):  # fill outside, axis by axis
        inside.narrow(axis, 0, a - first).fill_(fill)
        inside.narrow(axis, b - first, inside.shape[axis] - (b - first)).fill_(fill)
        inside = inside.narrow(axis, a - first, b - a)
    if isinstance(part, torch.Tensor):
        inside.copy_(part)
    else:
        inside.numpy()[...] = part
    return out


def volume_patch(patch_size: int | Sequence[int], slice_axis: int | None) -> tuple[int, ...]:
    """Return the size of a patch along the axes of the volume: three numbers, 1 across slices."""
    if slice_axis is None:
        return ensure_tuple_rep(patch_size, 3)
    sizes = list(ensure_tuple_rep(patch_size, 2))
    return (*sizes[:slice_axis], 1, *sizes[slice_axis:])


class RandPatchd(MapTransform, Randomizable):
    """
    Dictionary transform: crop one training patch from a case, by the original's rules.

    A random patch has a uniformly drawn position inside the volume (with an augmentation, the original's range, which
    starts one voxel before the volume). A forced patch has a foreground voxel at its center: its class is drawn
    uniformly from those present, and the voxel uniformly from the stored locations of the class. The patch is shifted
    to start inside the volume, but may extend beyond its end, where it is padded. A case without foreground gives a
    random patch.

    With a ``slice_axis``, a patch is a part of one slice. The slice of a random patch is drawn uniformly; that of a
    forced patch uniformly from the slices that hold a stored location of the class, and its center uniformly from those
    in the slice.

    With an ``ignore_label``, as in nnU-Net v2, the ignored voxels are not a class, and a random patch has an annotated
    voxel at its center, of any class, background included; so has a forced patch of a case without foreground. Only a
    case without annotated voxels gives patches at random positions.

    Written for this package: MONAI's ``RandCropByPosNegLabeld`` favors large classes, and both it and
    ``RandCropByLabelClassesd`` keep patches inside, do not support slots, and need the volume in memory.

    With an ``augmentation``, rotation and scaling are drawn first, and only the required part of the volume is read
    (just the patch if neither is applied). The output is the same as from the 205-voxel box that the original loads.

    Input: for each key an array, tensor or path of an ``.npy`` file, ``(C, X, Y, Z)`` or ``(X, Y, Z)``; under
    ``foreground_key`` a dictionary from class to ``(n, 3)`` voxels, or the path of an ``.npz`` file with one array per
    class, named by the class; with an ignore label also the annotated voxels, named "annotated". If this key is
    missing, the locations are computed from the last label, which is slow.

    Output: for each key a tensor ``(C, *patch_size)``, of slices with the other axes in their order, images as float32,
    labels as int16 (int8 if stored as int8) with -1 outside; the foreground and slot entries are removed. Unless
    MONAI's ``set_track_meta`` is off, these are ``MetaTensor``, with the ``affine`` of the input (identity for plain
    arrays) shifted to the patch; in that of a slice, the slice axis is the last one. Not lazy, not invertible.

    Args:
        keys: keys of images and labels on the same grid.
        patch_size: patch size in voxels, one number or three, with a ``slice_axis`` two.
        mode: "image" or "label" per key, or one for all. Defaults to ("image", "label").
        augmentation: rotation and scaling to apply while reading; its ``mode``, ``keys`` and ``spatial_size`` are not
            used. Defaults to ``None``, as for validation.
        foreground_key: key of the locations. Defaults to "foreground".
        slot_key: key of the flag, set by :py:class:`PatchDataset`, whether this patch must contain foreground. Defaults
            to "force_foreground".
        foreground_prob: probability of a forced patch if there is no such flag. Defaults to 0.5, the original's
            fraction for batch size 2.
        ignore_label: label of voxels without annotation. Defaults to ``None``.
        slice_axis: axis across the slices, for patches in 2D; the augmentation must be in their plane. Defaults to
            ``None``: patches are 3D.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a mode is unknown, the volumes of a case differ in size, none of the keys is in the data, or with
            an ignore label the locations lack those of annotated voxels.
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
        ignore_label: int | None = None,
        slice_axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if any(m not in MODES for m in self.mode):
            raise ValueError(f"mode must be one of {MODES}, got {mode}.")
        self.slice_axis = slice_axis
        self.patch_size = volume_patch(patch_size, slice_axis)
        self.augmentation = augmentation
        self.foreground_key, self.slot_key = foreground_key, slot_key
        self.foreground_prob = foreground_prob
        self.ignore_label = ignore_label
        self.box_size = self.patch_size if augmentation is None else augmentation.box_size(self.patch_size)
        self.start: tuple[int, ...] = (0, 0, 0)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPatchd:
        super().set_random_state(seed, state)
        if self.augmentation is not None:
            self.augmentation.set_random_state(state=self.R)
        return self

    def randomize(  # type: ignore[override]  # as MONAI's own crops, it needs more than ``data``
        self, shape: Sequence[int], locations: Mapping[Any, np.ndarray] | None
    ) -> None:
        """
        Draw ``start``, the first voxel of the patch, and the augmentation.

        Args:
            shape: size of the case, three numbers.
            locations: voxels by class, of which one is drawn for the center; ``None`` or empty for a random position.
        """
        need = [max(b - p, b - n) for b, p, n in zip(self.box_size, self.patch_size, shape)]
        low = [-need_d // 2 for need_d in need]  # floor of a negative number: the original's one voxel
        if locations:
            names = sorted(locations, key=str if ANNOTATED in locations else int)
            voxels = locations[names[self.R.randint(len(names))]]
            if self.slice_axis is not None:
                slices = np.unique(voxels[:, self.slice_axis])
                voxels = voxels[voxels[:, self.slice_axis] == slices[self.R.randint(len(slices))]]
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
        if forced or self.ignore_label is not None:
            is_file = isinstance(foreground, (str, PathLike))
            with (
                _damage_explained(foreground) if is_file else nullcontext(),
                self._locations(foreground, volumes) as locations,
            ):
                self.randomize(shape, locations if self.ignore_label is None else _eligible(locations, forced))
        else:
            self.randomize(shape, None)
        for key, mode in self.key_iterator(d, self.mode):
            out, to_input = self._patch(volumes[key], mode)
            if self.slice_axis is not None:
                order = [*(axis for axis in range(3) if axis != self.slice_axis), self.slice_axis, 3]
                out, to_input = out.squeeze(1 + self.slice_axis), to_input[:, order]
            d[key] = on_new_grid(out, d[key], to_input)
        return d

    def _locations(self, foreground: Any, volumes: Mapping[Hashable, Any]) -> AbstractContextManager[Mapping]:
        if isinstance(foreground, (str, PathLike)):
            return np.load(foreground)  # lazy: reads only the class that is drawn
        if foreground is None:
            labels = [volumes[key] for key, mode in zip(self.keys, self.mode) if mode == "label" and key in volumes]
            label = np.asarray(labels[-1]) if labels else np.zeros((0, 0, 0))
            foreground = foreground_locations(label.reshape(label.shape[-3:]), self.ignore_label)
        return nullcontext({value: voxels for value, voxels in foreground.items() if len(voxels) or value == ANNOTATED})

    def _patch(self, volume: np.ndarray | torch.Tensor, mode: str) -> tuple[torch.Tensor, np.ndarray]:
        """Return the drawn patch, ``(C, X, Y, Z)``, and the matrix ``(4, 4)`` from its voxels to the volume's."""
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


def _eligible(locations: Mapping[Any, np.ndarray], forced: bool) -> dict[Any, np.ndarray]:
    """Return the locations of the classes for a forced patch, if there are any, else those of annotated voxels."""
    if ANNOTATED not in locations:
        raise ValueError(
            f"with an ignore_label, the locations of a case must include those of {ANNOTATED!r} voxels, got "
            f"{sorted(map(str, locations))}."
        )
    names = [name for name in locations if name != ANNOTATED] if forced else []
    return {name: locations[name] for name in names or [ANNOTATED] if len(locations[name])}
