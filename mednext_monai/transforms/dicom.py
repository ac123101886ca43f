"""Saving segmentations of DICOM series as DICOM-SEG."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from .. import __version__
from ..data.dicom import DicomSeries
from ..data.dicom_seg import is_our_seg, write_dicom_seg
from ..data.segments import Segment, make_segments
from ..files import read_json
from ..options import plain
from ..weights import read_settings
from .preprocess import DICOM, case_name

__all__ = ["SaveDicomSegd"]

logger = logging.getLogger(__name__)


class SaveDicomSegd(MapTransform):
    """
    Write segmentations of DICOM series as ``<case>.seg.dcm``, on the frames of the series.

    See :py:func:`~mednext_monai.data.dicom_seg.write_dicom_seg`. A case without any voxel of a class has no file, which
    is a warning; an older file of this package is removed then, since it would be the segmentation of another run.

    The names of the classes are those that the checkpoint was trained with, or those in ``channel_def`` of the output
    ``pred`` in the metadata, or ``class_1``, ``class_2``, ... Their codes are in ``segment_codes`` beside it, see
    :py:func:`~mednext_monai.data.segments.make_segments`.

    Args:
        keys: keys of class indices ``(1, X, Y, Z)`` on the grid of the series, with its metadata, as returned by
            :py:class:`~mednext_monai.transforms.RestoreClassesd`.
        output_dir: folder to write to; created if needed. Defaults to the working directory.
        checkpoint: the checkpoint, or several of one task. Defaults to ``None``.
        metadata: the metadata of the bundle, a JSON file, which may be missing. Its ``name`` and ``version`` are those
            of the algorithm. Defaults to ``None``.
        classes: number of classes, background included, to which the names must belong. Defaults to 2.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.

    Raises:
        ValueError: if the metadata are invalid; when called, if the image is no DICOM series.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_dir: str | PathLike = ".",
        checkpoint: str | PathLike | Sequence[str | PathLike] | None = None,
        metadata: str | PathLike | None = None,
        classes: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        content = _read_metadata(metadata)
        self.segments = _segments(content, checkpoint, classes, str(metadata))
        self.algorithm = (str(content.get("name", "MedNeXt")), str(content.get("version", __version__)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = d[key].meta
            if DICOM not in meta:
                raise ValueError(f"{case_name(meta, key)}: its image is no DICOM series, to which DICOM-SEG refers.")
            series = DicomSeries.from_json(meta[DICOM])
            target = self.output_dir / f"{case_name(meta, key)}.seg.dcm"
            labels = d[key].numpy(force=True)[0]
            if not write_dicom_seg(labels, series, target, self.segments, self.algorithm):
                if is_our_seg(target):
                    target.unlink()
                logger.warning(f"{series}: no class has a voxel; {target.name} is not written.")
        return d


def _read_metadata(file: str | PathLike | None) -> dict:
    if file is None or not Path(file).is_file():
        return {}
    return _mapping(plain(read_json(file)))


def _mapping(content: Any, *keys: str) -> Any:
    """Return an object, or what is in it under one key in another; nothing if there is no object."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _segments(
    metadata: Mapping, checkpoint: str | PathLike | Sequence[str | PathLike] | None, classes: int, where: str
) -> list[Segment]:
    """Return the classes with the names of the checkpoint or of the metadata, and the codes of the metadata."""
    pred = _mapping(metadata, "network_data_format", "outputs", "pred")
    paths = [checkpoint] if checkpoint is None or isinstance(checkpoint, (str, PathLike)) else list(checkpoint)
    settings = None if paths[0] is None or not Path(paths[0]).is_file() else read_settings(str(paths[0]))
    described = _mapping(pred, "channel_def")
    for names in (settings["labels"] if settings else [], [described.get(str(i), "") for i in range(len(described))]):
        if len(names) == classes:
            break
    else:
        names = [f"class_{value}" for value in range(classes)]
    return make_segments(list(map(str, names)), pred.get("segment_codes"), f"{where}: segment_codes")
