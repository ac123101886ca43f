"""Preprocessing as MONAI transforms, for inference and evaluation; training reads the case store instead.

A chain that does to a file what the original does, and its way back::

    LoadImaged("image") → EnsureChannelFirstd("image") → NonzeroCropd("image") →
    ResampleToSpacingd(["image", "label"], is_label=[False, True]) → NormalizeChannelsd("image", [...], [...]) →
    network → RestoreOriginalGridd("pred") → SaveSegmentationd("pred", output_dir)

There is no ``Orientationd`` in it: the original keeps the axes of the file, and one forward pass of a network is not
equivariant to flips, so a network must see the orientations it was trained on. What one transform does is kept in the
``applied_operations`` of the MetaTensor, its affine follows, and MONAI's ``Invertd`` (with ``nearest_interp=False``)
undoes crop and resampling as well; ``RestoreOriginalGridd`` needs less memory, since it holds one resampled class at a
time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import TraceKeys, convert_to_dst_type, ensure_tuple_rep

from .files import write_segmentation
from .geometry import (
    Geometry,
    cropping_matrix,
    resampling_matrix,
    restore_labels,
    restore_probabilities,
    spacing_of,
)
from .nonzero import OUTSIDE, bounding_box, crop, fill_holes, mark_outside, nonzero_mask
from .normalization import by_channel, normalize_channels
from .resampling import resample_image, resample_labels, resampled_shape, separate_axis

__all__ = [
    "NonzeroCropd",
    "NormalizeChannels",
    "NormalizeChannelsd",
    "ResampleToSpacing",
    "ResampleToSpacingd",
    "RestoreOriginalGridd",
    "SaveSegmentationd",
]


class NonzeroCropd(MapTransform, InvertibleTransform):
    """
    Crop to the box in which any channel of the image is nonzero, and mark background outside that region in the label.

    The region has its holes filled. Where the label is background and outside, it becomes -1. Without a label (at
    inference) one is made, 0 inside and -1 outside: the mask for ``NormalizeChannelsd``, under the label's key.

    The inverse puts the box into a volume of zeros; in the label, -1 becomes 0.

    Args:
        keys: arrays ``(C, X, Y, Z)`` to crop, with the image among them.
        source_key: the image that decides. Defaults to ``"image"``.
        label_key: the label map ``(1, X, Y, Z)``; made if it is not there. Defaults to ``"label"``.
        allow_missing_keys: whether other keys may be missing. Defaults to ``False``.

    Raises:
        ValueError: when the image is 0 everywhere, has no affine, or an array of another shape is to be cropped.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: str = "image",
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key
        self.label_key = label_key
        self.keys = tuple(dict.fromkeys((*self.keys, label_key)))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        source = _meta_tensor(d[self.source_key], self.source_key)
        image = source.numpy()
        mask = nonzero_mask(image)
        try:
            start, stop = bounding_box(mask)
        except ValueError as error:
            raise ValueError(f"{source.meta.get('filename_or_obj', self.source_key)}: {error}") from error
        inside = fill_holes(crop(mask, start, stop))
        if self.label_key not in d:
            d[self.label_key] = MetaTensor(torch.zeros(1, *mask.shape, dtype=torch.int8)).copy_meta_from(source)
        for key in self.key_iterator(d):
            tensor = _meta_tensor(d[key], key)
            if tensor.shape[1:] != mask.shape:
                raise ValueError(f"{key} has shape {tuple(tensor.shape[1:])}, {self.source_key} has {mask.shape}.")
            array = crop(tensor.numpy(), start, stop)
            if key == self.label_key:
                array = mark_outside(_signed(array), inside[None])
            record = {"start": start, "stop": stop, "affine": tensor.affine.tolist()}
            d[key] = _track(self, tensor, array, cropping_matrix(start), record)
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            record = self.pop_transform(d[key])
            start, stop = (tuple(record[TraceKeys.EXTRA_INFO][name]) for name in ("start", "stop"))
            array = d[key].numpy(force=True)
            if key == self.label_key:
                array = np.where(array == OUTSIDE, array.dtype.type(0), array)
            volume = np.zeros((len(array), *record[TraceKeys.ORIG_SIZE]), dtype=array.dtype)
            crop(volume, start, stop)[...] = array
            d[key] = _moved(d[key], volume, np.linalg.inv(cropping_matrix(start)))
        return d


class ResampleToSpacing(InvertibleTransform):
    """
    Resample over the same extent to a spacing, with the rules of the original; see ``resampling``.

    Images are interpolated cubically (the inverse: linearly, as the original does with probabilities), label maps by
    the largest linear weight both ways; an axis more than three times as coarse as the finest takes the nearest slice.

    Args:
        spacing: mm per axis, in the axis order of the array. Defaults to 1 mm, as published.
        is_label: whether the array is a label map. Defaults to ``False``.
    """

    def __init__(self, spacing: Sequence[float] = (1.0, 1.0, 1.0), is_label: bool = False) -> None:
        self.spacing = tuple(float(value) for value in spacing)
        self.is_label = is_label

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """
        Args:
            img: MetaTensor ``(C, X, Y, Z)`` whose affine gives its spacing.

        Returns:
            float32, or for labels their own integer type (int16 for labels stored as floating point).
        """
        img = _meta_tensor(img, "the array")
        spacing = spacing_of(img.affine.numpy())
        old, axis = tuple(img.shape[1:]), separate_axis(spacing, self.spacing)
        new = resampled_shape(old, spacing, self.spacing)
        array = self._resample(img.numpy(), new, axis, order=3)
        return _track(self, img, array, resampling_matrix(old, new), {"axis": -1 if axis is None else axis})

    def inverse(self, img: torch.Tensor) -> torch.Tensor:
        record = self.pop_transform(img)
        old, new = tuple(record[TraceKeys.ORIG_SIZE]), tuple(img.shape[1:])
        axis = record[TraceKeys.EXTRA_INFO]["axis"]
        array = self._resample(img.numpy(force=True), old, None if axis < 0 else axis, order=1)
        return _moved(img, array, np.linalg.inv(resampling_matrix(old, new)))

    def _resample(self, array: np.ndarray, shape: tuple[int, ...], axis: int | None, order: int) -> np.ndarray:
        if not self.is_label:
            return resample_image(array, shape, axis, order)
        return np.stack([resample_labels(channel, shape, axis) for channel in _signed(array)])


class ResampleToSpacingd(MapTransform, InvertibleTransform):
    """
    Dictionary version of ``ResampleToSpacing``.

    Args:
        keys: arrays ``(C, X, Y, Z)`` to resample.
        spacing: mm per axis, in the axis order of the arrays. Defaults to 1 mm, as published.
        is_label: whether the arrays are label maps: one answer, or one per key. Defaults to ``False``.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        is_label: bool | Sequence[bool] = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resamplers = {
            key: ResampleToSpacing(spacing, answer)
            for key, answer in zip(self.keys, ensure_tuple_rep(is_label, len(self.keys)))
        }

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resamplers[key](d[key])
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resamplers[key].inverse(d[key])
        return d


class NormalizeChannels(Transform):
    """
    Normalise each channel by its scheme; see ``normalization.normalize_channels``.

    Args:
        schemes: ``"CT"``, ``"zscore"``, ``"masked_zscore"`` or ``"none"`` per channel.
        intensity: for every ``"CT"`` channel ``mean``, ``sd``, ``p005`` and ``p995``: one entry per channel, or by
            channel index, which may be text, as in JSON. Defaults to ``None``.
    """

    def __init__(self, schemes: Sequence[str], intensity: Mapping | Sequence | None = None) -> None:
        self.schemes = tuple(schemes)
        self.intensity = by_channel(intensity)

    def __call__(self, img: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            img: ``(C, X, Y, Z)``.
            label: ``(1, X, Y, Z)``, below 0 outside the nonzero region; needed by ``"masked_zscore"``.
        """
        inside = None if label is None else np.asarray(label)[0] >= 0
        array = normalize_channels(np.asarray(img), self.schemes, self.intensity, inside)
        return convert_to_dst_type(array, img, dtype=torch.float32)[0]


class NormalizeChannelsd(MapTransform):
    """
    Dictionary version of ``NormalizeChannels``.

    Args:
        keys: images ``(C, X, Y, Z)`` to normalise.
        schemes: one scheme per channel.
        intensity: data set statistics of CT channels, one entry per channel or by index. Defaults to ``None``.
        label_key: the label map with -1 outside, from ``NonzeroCropd``. Defaults to ``"label"``.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        schemes: Sequence[str],
        intensity: Mapping | Sequence | None = None,
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.normalizer = NormalizeChannels(schemes, intensity)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalizer(d[key], d.get(self.label_key))
        return d


class RestoreOriginalGridd(MapTransform):
    """
    Bring predictions back to the grid of the file: probabilities linearly, then the most probable class.

    The result is a MetaTensor ``(1, X, Y, Z)`` of class indices, uint8 (int16 above 256 classes), with the affine and
    the metadata of the file, 0 outside the crop.

    Args:
        keys: predictions ``(K, X, Y, Z)`` on the preprocessed grid, without batch dimension.
        source_key: the image that went through ``NonzeroCropd`` and ``ResampleToSpacingd``. Defaults to ``"image"``.
        is_label: whether the predictions are label maps ``(1, X, Y, Z)`` instead of probabilities. Defaults to
            ``False``.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.

    Raises:
        ValueError: when the image went through other spatial transforms (use ``Invertd`` then), or the prediction is
            not on its grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: str = "image",
        is_label: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key
        self.is_label = is_label

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        source = _meta_tensor(d[self.source_key], self.source_key)
        geometry = _traced_geometry(source)
        for key in self.key_iterator(d):
            array = d[key].numpy(force=True)
            if self.is_label:
                labels = restore_labels(_signed(array[0]), geometry).astype(np.uint8 if array.max() < 256 else np.int16)
            else:
                labels = restore_probabilities(array, geometry)
            result = MetaTensor(torch.from_numpy(labels[None])).copy_meta_from(source)
            result.affine = torch.tensor(geometry.affine, dtype=torch.float64)
            result.applied_operations = []
            d[key] = result
        return d


class SaveSegmentationd(MapTransform):
    """
    Write segmentations on the grid of the original image, with its affine and, if it is NIfTI, its header.

    The file is ``output_dir/<name of the image><postfix>.nii.gz``; its path is put under ``<key>_file``.

    Args:
        keys: class indices ``(1, X, Y, Z)`` on the original grid, with the image's metadata, as from
            ``RestoreOriginalGridd``.
        output_dir: folder to write to; made if needed.
        output_postfix: added to the image's name. Defaults to none.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        output_postfix: str = "",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(d):
            original = Path(d[key].meta["filename_or_obj"])
            stem = original.name.removesuffix(".gz")
            path = self.output_dir / f"{Path(stem).stem}{self.output_postfix}.nii.gz"
            affine = d[key].affine.numpy()
            write_segmentation(d[key].numpy(force=True)[0], path, like=original, affine=affine)
            d[f"{key}_file"] = str(path)
        return d


def _meta_tensor(tensor: torch.Tensor, name: str) -> MetaTensor:
    if not isinstance(tensor, MetaTensor) or tensor.ndim != 4:
        raise ValueError(
            f"{name} must be a MetaTensor (C, X, Y, Z) with an affine, as LoadImaged and EnsureChannelFirstd give it, "
            f"got {type(tensor).__name__} {tuple(getattr(tensor, 'shape', ()))}."
        )
    return tensor


def _signed(array: np.ndarray) -> np.ndarray:
    """Labels as signed integers: floating point and unsigned ones become int16."""
    return array if np.issubdtype(array.dtype, np.signedinteger) else array.astype(np.int16)


def _track(
    transform: InvertibleTransform, source: MetaTensor, array: np.ndarray, matrix: np.ndarray, extra_info: dict
) -> MetaTensor:
    """The array as MetaTensor with the source's metadata, its affine moved by ``matrix``, the operation recorded."""
    result = MetaTensor(torch.from_numpy(np.ascontiguousarray(array))).copy_meta_from(source)
    size = tuple(source.shape[1:])
    return transform.push_transform(result, affine=matrix, orig_size=size, extra_info=extra_info)


def _moved(source: MetaTensor, array: np.ndarray, matrix: np.ndarray) -> MetaTensor:
    """The array as MetaTensor with the source's metadata, its affine moved by ``matrix``."""
    result = MetaTensor(torch.from_numpy(np.ascontiguousarray(array))).copy_meta_from(source)
    result.affine = source.affine.to(torch.float64) @ torch.from_numpy(matrix)
    return result


def _traced_geometry(source: MetaTensor) -> Geometry:
    """The geometry from what crop and resampling recorded in the image."""
    records = source.applied_operations
    names = [record.get(TraceKeys.CLASS_NAME) for record in records]
    if names != [NonzeroCropd.__name__, ResampleToSpacing.__name__]:
        raise ValueError(
            "the image must have gone through NonzeroCropd and ResampleToSpacingd and no other invertible transform, "
            f"got {names}; undo these with monai.transforms.Invertd instead."
        )
    cropping, resampling = (record[TraceKeys.EXTRA_INFO] for record in records)
    return Geometry(
        shape=tuple(records[0][TraceKeys.ORIG_SIZE]),
        affine=tuple(map(tuple, cropping["affine"])),
        start=tuple(cropping["start"]),
        stop=tuple(cropping["stop"]),
        resampled_shape=tuple(source.shape[1:]),
        axis=None if resampling["axis"] < 0 else resampling["axis"],
    )
