"""Preprocessing and its inverse as MONAI transforms, for inference and evaluation; training reads stored cases instead.

The steps of the original from image file to segmentation file::

    Preprocessd("image", spacing, normalization), the network, RestoreClassesd("pred"),
    SaveImageOnSourceGridd("pred", output_dir)

``preprocess_case`` does the work, both here and for stored training cases. MONAI's ``Invertd`` also inverts
``Preprocessd``, but holds the probabilities of all classes on the grid of the file; ``RestoreClassesd`` computes the
class map with one class at a time.

There is no ``Orientationd``: the original keeps the axes of the file, and a network is not equivariant to flips, so it
must see the orientations that it was trained on. For files of mixed orientation, use the argument ``orientation``.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SaveImaged
from monai.utils import ImageMetaKey, MetaKeys, PostFix, TraceKeys

from ..data.dicom import DicomSeries
from ..data.io import (
    image_paths,
    read_image,
    read_label,
    result_ending,
    strip_ending,
    to_labels,
    write_segmentation,
)
from ..data.probabilities import DiskProbabilities
from ..preprocessing.case import check_settings, preprocess_case
from ..preprocessing.geometry import (
    Box,
    Geometry,
    Keep,
    keep_slabs,
    oriented,
    restore_axes,
    restore_image,
    restore_labels,
    restore_probabilities,
    restore_slabs,
)

__all__ = [
    "LoadLabeld",
    "Preprocessd",
    "RestoreClassesd",
    "SaveImageOnSourceGridd",
    "add_slabs",
    "case_name",
    "class_map_from_disk",
    "class_map_from_slabs",
    "file_shape",
    "slab_axes",
    "volume_of",
]

CASE_ID = "case_id"  # in the metadata of the image: the case id, which names the segmentation file
RESTORED = "is_class_map"  # in the metadata of a class map that is on the grid of the file already
DIGEST = "result_digest"  # in the metadata of the image: what its result depends on, see mednext_monai.data.results
DICOM = "dicom_series"  # in the metadata of the image: its DICOM series as JSON
NONZERO = "nonzero"  # in the metadata of the image: its nonzero region, holes filled, (X, Y, Z)


class Preprocessd(MapTransform, InvertibleTransform):
    """
    Crop an image to its nonzero region, resample it over the same extent and normalize it, as published.

    :py:func:`~mednext_monai.preprocessing.case.preprocess_case` does the work. MONAI has no transform that resamples by
    the original's rules or normalizes inside a region with holes filled.

    An image is one of

    - the path of a file, a list of one path per channel, or a :py:class:`~mednext_monai.data.dicom.DicomSeries`, read
      by :py:func:`mednext_monai.data.io.read_image`;
    - a ``MetaTensor`` in memory, whose affine gives its grid: ``(C, X, Y, Z)``, or ``(X, Y, Z)`` for one channel;
    - a NumPy array of these shapes whose affine, ``(4, 4)`` from voxel index to mm, is under ``<key>_meta_dict``, as
      ``{"affine": ...}``.

    The output is a ``MetaTensor`` ``(C, X', Y', Z')``, float32, with the affine of the new grid. Its metadata contain
    ``filename_or_obj``, ``original_affine`` and ``spatial_shape`` of the file; the ``id`` of the case, if given, under
    ``case_id``; its ``result_digest``, if given; and the nonzero region on the new grid, boolean, under ``nonzero``.

    A label (a path, tensor or array like the image, integers, one channel) becomes a ``MetaTensor`` ``(1, X', Y',
    Z')``, int8 or int16, in which background outside the nonzero region is -1. The label is optional.

    The inverse, for ``Invertd(..., nearest_interp=False)``, interpolates linearly, as the original does for
    probabilities, and pads the crop with zeros to the grid of the file; a label is resampled as classes.

    Args:
        keys: key of the image.
        spacing: target spacing in mm, per axis. Defaults to 1 mm, as published.
        normalization: one of :py:data:`~mednext_monai.preprocessing.normalization.SCHEMES` per channel. Defaults to
            ``("zscore",)``.
        intensity: statistics of CT channels, see :py:func:`~mednext_monai.preprocessing.case.check_settings`. Defaults
            to ``None``.
        orientation: axis codes such as ``"RAS"`` to reorient the image first. Defaults to ``None``, the file's axes.
        label_key: key of the label, which may be missing; ``None`` to ignore labels. Defaults to ``"label"``.
        allow_missing_keys: whether the image may be missing. Defaults to ``False``.

    Raises:
        ValueError: if the settings are incomplete; if there are several ``keys``; or if the image cannot be read, has
            no affine, is 0 everywhere, or does not match the channels of the settings or the shape of the label.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        normalization: Sequence[str] = ("zscore",),
        intensity: Mapping | Sequence | None = None,
        orientation: str | None = None,
        label_key: str | None = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys must name one image, got {self.keys}.")
        self.image_key = self.keys[0]
        self.label_key = label_key
        self.settings = check_settings(
            {
                "spacing": list(spacing),
                "normalization": list(normalization),
                "intensity": intensity,
                "orientation": orientation,
            }
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, affine, meta = volume_of(d, key)
            name = meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)
            label = None
            if self.label_key is not None and self.label_key in d:
                label = _label(d, self.label_key)
            try:
                case = preprocess_case(image, label, affine, self.settings)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            record = {
                "geometry": case.geometry.to_dict(),
                "affine": affine.tolist(),
                "orientation": self.settings["orientation"] or "",
            }
            meta = {
                **meta,
                MetaKeys.ORIGINAL_AFFINE: affine,
                MetaKeys.SPATIAL_SHAPE: np.asarray(image.shape[1:]),
                MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            }
            if "id" in d:
                meta[CASE_ID] = str(d["id"])
            if DIGEST in d:
                meta[DIGEST] = str(d[DIGEST])
            nonzero = torch.from_numpy(case.label >= 0)
            d[key] = self._tracked(case.image, case.geometry, {**meta, NONZERO: nonzero}, record)
            if label is not None:
                d[self.label_key] = self._tracked(case.label[None], case.geometry, meta, record)
        return d

    def _tracked(self, array: np.ndarray, geometry: Geometry, meta: Mapping, record: Mapping) -> MetaTensor:
        affine = torch.from_numpy(geometry.resampled_affine)
        tensor = MetaTensor(torch.from_numpy(array), affine=affine, meta=dict(meta))
        size = tuple(meta[MetaKeys.SPATIAL_SHAPE].tolist())
        return self.push_transform(tensor, orig_size=size, extra_info=dict(record))

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in (self.image_key, self.label_key):
            if key not in d:
                continue
            record = self.pop_transform(d[key])[TraceKeys.EXTRA_INFO]
            geometry = Geometry.from_dict(record["geometry"])
            array = d[key].numpy(force=True)
            if key == self.label_key:
                restored = restore_labels(array[0], geometry)[None]
            else:
                restored = restore_image(array, geometry)
            d[key] = _on_file_grid(restored, d[key], record)
        return d


class RestoreClassesd(MapTransform):
    """
    Resample class probabilities from the preprocessed grid to that of the file and take the most probable class.

    The result equals ``Invertd`` followed by argmax, without holding all classes on the grid of the file: one class at
    a time is interpolated in slabs, so the additional memory does not grow with the number of classes or voxels.

    The output is a ``MetaTensor`` ``(1, X, Y, Z)`` of class indices, uint8 (int16 for more than 256 classes), with the
    affine and metadata of the image file, 0 outside the nonzero crop. A class map of
    :py:class:`~mednext_monai.inferers.ClassMapInferer` is left unchanged.

    Args:
        keys: probabilities ``(K, X', Y', Z')``, without batch dimension; any values that increase with the probability.
        source_key: key of the image that :py:class:`Preprocessd` has transformed. Defaults to ``"image"``.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.

    Raises:
        ValueError: if other invertible transforms were applied to the image (then use ``Invertd``), there are fewer
            than two classes, or the probabilities are not on the grid of the image.
    """

    def __init__(
        self, keys: KeysCollection = "pred", source_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        source = d[self.source_key]
        record = _record(source)
        geometry = Geometry.from_dict(record["geometry"])
        for key in self.key_iterator(d):
            if isinstance(d[key], MetaTensor) and d[key].meta.get(RESTORED):
                continue
            classes = restore_probabilities(d[key].numpy(force=True), geometry)
            d[key] = _on_file_grid(classes[None], source, record)
        return d


def class_map_from_slabs(
    image: MetaTensor, slabs: Iterable[np.ndarray], along: int, probabilities: DiskProbabilities | None = None
) -> MetaTensor:
    """
    Do what :py:class:`RestoreClassesd` does with probabilities that arrive slab by slab.

    Args:
        image: an image that :py:class:`Preprocessd` has transformed, ``(C, X', Y', Z')``.
        slabs: probabilities ``(K, ...)``, consecutive along ``along``, together ``(K, X', Y', Z')``.
        along: the axis of the slabs, one of :py:func:`slab_axes`.
        probabilities: new and of :py:func:`file_shape`, where the resampled probabilities are stored, whose argmax in
            float32 is the class map. Defaults to ``None``: they are not stored.

    Returns:
        the class map ``(1, X, Y, Z)``, which :py:class:`RestoreClassesd` leaves unchanged.

    Raises:
        ValueError: if other invertible transforms were applied to the image, there are fewer than two classes, or the
            slabs end too early.
    """
    record = _record(image)
    keep = None if probabilities is None else _keeper(probabilities, record)
    classes = restore_slabs(slabs, Geometry.from_dict(record["geometry"]), along, keep)
    return _restored(classes, image, record)


def add_slabs(
    image: MetaTensor, slabs: Iterable[np.ndarray], along: int, sums: DiskProbabilities, weight: float, is_first: bool
) -> None:
    """
    Resample probabilities that arrive slab by slab to the grid of the file, and add them to others of the same file.

    Args:
        image, slabs, along: as for :py:func:`class_map_from_slabs`.
        sums: of :py:func:`file_shape`; its ``total`` is the sum of the weights.
        weight: by which the probabilities are multiplied.
        is_first: whether nothing has been added before.

    Raises:
        ValueError: as for :py:func:`class_map_from_slabs`.
    """
    record = _record(image)
    keep_slabs(slabs, Geometry.from_dict(record["geometry"]), along, _keeper(sums, record, weight, is_first))


def class_map_from_disk(image: MetaTensor, probabilities: DiskProbabilities) -> MetaTensor:
    """Return the most probable classes of probabilities on disk, as :py:func:`class_map_from_slabs` does."""
    return _restored(probabilities.class_map(), image, {**_record(image), "orientation": ""})


def file_shape(image: MetaTensor) -> tuple[int, ...]:
    """Return the voxels ``(X, Y, Z)`` of the file of an image that :py:class:`Preprocessd` has transformed."""
    return tuple(int(count) for count in image.meta[MetaKeys.SPATIAL_SHAPE])


def case_name(meta: Mapping, key: Hashable = "pred") -> str:
    """Return the name of a case in the names of its files: its id, or that of its image file without the ending."""
    return meta.get(CASE_ID) or strip_ending(meta.get(ImageMetaKey.FILENAME_OR_OBJ) or str(key))


def _keeper(probabilities: DiskProbabilities, record: Mapping, weight: float = 1, is_first: bool = True) -> Keep:
    """Return a function that stores probabilities in boxes of the grid before the crop."""
    affine = np.asarray(record["affine"])

    def keep(index: int, box: Box, values: np.ndarray) -> None:
        volume = probabilities.volume(index)
        if record["orientation"]:
            volume = oriented(volume[None], affine, record["orientation"])[0]
        weighted = values if weight == 1 else values * np.float32(weight)
        volume[box] = weighted if is_first else volume[box] + weighted

    return keep


def _restored(classes: np.ndarray, image: MetaTensor, record: Mapping) -> MetaTensor:
    result = _on_file_grid(classes[None], image, record)
    result.meta[RESTORED] = True
    return result


def slab_axes(image: MetaTensor) -> list[int]:
    """Return the axes along which probabilities can be restored in slabs: all but a separate one that is resampled."""
    separate = Geometry.from_dict(_record(image)["geometry"]).changed_axis
    return [axis for axis in range(3) if axis != separate]


class LoadLabeld(MapTransform):
    """
    Read label maps on their own grid, as ``MetaTensor`` ``(1, X, Y, Z)``, int8 or int16.

    :py:func:`mednext_monai.data.io.read_label` does the work: MONAI's ``LoadImaged`` would accept several channels and
    values that are not integers.

    Args:
        keys: keys of the paths of label files.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(self, keys: KeysCollection = "label", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label, affine = read_label(d[key])
            meta = {ImageMetaKey.FILENAME_OR_OBJ: str(d[key])}
            d[key] = MetaTensor(torch.from_numpy(label[None]), affine=torch.from_numpy(affine), meta=meta)
        return d


class SaveImageOnSourceGridd(SaveImaged):
    """
    Write segmentations as ``<case>.nii.gz`` with the header of their image, or those of pictures in their format.

    The header is copied from a NIfTI image (affines and their codes, units, ...), otherwise created from the affine.
    MONAI's ``SaveImaged`` creates a new header, drops axes of size 1, and fails on segmentations of multichannel images
    for two thirds of the axis orders. This class is derived from it so that tools that remove ``SaveImaged`` from a
    bundle's transforms (MONAI Label) find it.

    The file name is the ``id`` of the case, or that of the image file without its ending. The path is stored in the
    metadata under ``saved_to``. A digest in the metadata, under ``result_digest``, is written into the header.

    Args:
        keys: keys of class indices ``(1, X, Y, Z)`` on the grid of the image, with its metadata, as returned by
            :py:class:`RestoreClassesd`.
        output_dir: folder to write to; created if needed.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(
        self, keys: KeysCollection = "pred", output_dir: str | PathLike = ".", allow_missing_keys: bool = False
    ) -> None:
        self.output_dir = Path(output_dir)
        super().__init__(keys, output_dir=self.output_dir, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = d[key].meta
            source = meta.get(ImageMetaKey.FILENAME_OR_OBJ)
            ending = ".nii.gz" if source is None or DICOM in meta else result_ending(source)
            target = self.output_dir / f"{case_name(meta, key)}{ending}"
            labels, affine = d[key].numpy(force=True)[0], d[key].affine.numpy()
            write_segmentation(labels, target, like=source, affine=affine, digest=meta.get(DIGEST))
            meta[MetaKeys.SAVED_TO] = str(target)
        return d


def volume_of(data: Mapping[Hashable, Any], key: Hashable) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return volume ``(C, X, Y, Z)``, affine ``(4, 4)`` and metadata of an image given as path, tensor or array."""
    value = data[key]
    if isinstance(value, (str, PathLike)) or (
        isinstance(value, Sequence) and all(isinstance(item, (str, PathLike)) for item in value)
    ):
        array, affine = read_image(value)
        meta = {ImageMetaKey.FILENAME_OR_OBJ: os.fspath(image_paths(value)[0])}
        return array, affine, {**meta, DICOM: value.to_json()} if isinstance(value, DicomSeries) else meta
    given = data.get(PostFix.meta(str(key)), {})
    meta = dict(value.meta) if isinstance(value, MetaTensor) else dict(given)
    affine = meta.pop(MetaKeys.AFFINE, None)
    if affine is None or not isinstance(value, (np.ndarray, torch.Tensor)):
        raise ValueError(
            f"{key} must be a path, a MetaTensor, or an array with {{'affine': ...}} under {PostFix.meta(str(key))!r}; "
            f"got {type(value).__name__}{'' if affine is not None else ' without an affine'}."
        )
    array = value.numpy(force=True) if isinstance(value, torch.Tensor) else value
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise ValueError(f"{key} must have the shape (C, X, Y, Z) or (X, Y, Z), got {tuple(array.shape)}.")
    return array.astype(np.float32, copy=False), np.asarray(affine, dtype=np.float64), meta


def _label(data: Mapping[Hashable, Any], key: Hashable) -> np.ndarray:
    """Return a label ``(X, Y, Z)``, int8 or int16, given as path, tensor or array."""
    value = data[key]
    if isinstance(value, (str, PathLike)):
        return read_label(value)[0]
    array = value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ValueError(f"{key} must have the shape (1, X, Y, Z) or (X, Y, Z), got {tuple(array.shape)}.")
    return to_labels(array, str(key))


def _record(source: Any) -> dict:
    """Return the record of :py:class:`Preprocessd`, which must be the only invertible transform of the image."""
    operations = source.applied_operations if isinstance(source, MetaTensor) else []
    names = [operation.get(TraceKeys.CLASS_NAME) for operation in operations]
    if names != [Preprocessd.__name__]:
        raise ValueError(
            "the image must have gone through Preprocessd and no other invertible transform, got "
            f"{names}; undo these with monai.transforms.Invertd instead."
        )
    return operations[0][TraceKeys.EXTRA_INFO]


def _on_file_grid(array: np.ndarray, source: MetaTensor, record: Mapping) -> MetaTensor:
    """Return an array on the grid before the crop as ``MetaTensor`` with axes, affine and metadata of the file."""
    affine = np.asarray(record["affine"])
    if record["orientation"]:
        array = restore_axes(array, affine, record["orientation"])
    meta = {key: value for key, value in source.meta.items() if key not in (NONZERO, MetaKeys.AFFINE)}
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(affine), meta=meta)
