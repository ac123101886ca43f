"""Saving the regions of a task, unions of its classes, as masks."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from ..options import parse_switch
from .preprocess import SaveImageOnSourceGridd

__all__ = ["SaveRegionsd", "region_folders"]

FOLDER = "regions"  # in the output folder


class SaveRegionsd(MapTransform):
    """
    Write each region as a binary mask, ``<output_dir>/regions/<folder>/<case>.nii.gz``, with the header of the image.

    A mask is the union of the classes of the region in the class map, which is what the evaluation compares; nnU-Net v2
    trains regions themselves and thresholds each probability.

    Args:
        keys: keys of class indices ``(1, X, Y, Z)``, as for
            :py:class:`~mednext_monai.transforms.SaveImageOnSourceGridd`.
        output_dir: folder to write to; created if needed.
        regions: values of the classes that a region unites, by region name.
        folders: folder of each region, see :py:func:`region_folders`.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | PathLike,
        regions: Mapping[str, Sequence[int]],
        folders: Mapping[str, str],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = {name: list(regions[name]) for name in folders}
        parent = Path(output_dir)
        self.savers = {name: SaveImageOnSourceGridd(self.keys, parent / folder) for name, folder in folders.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = {name: value for name, value in d[key].meta.items() if name != MetaKeys.AFFINE}
            labels = d[key].numpy(force=True)
            for name, save in self.savers.items():
                mask = np.isin(labels, self.values[name]).astype(np.uint8)
                save({key: MetaTensor(torch.from_numpy(mask), affine=d[key].affine, meta=dict(meta))})
        return d


def region_folders(regions: Mapping[str, Sequence[int]] | None, save_regions: Any = None) -> dict[str, str]:
    """
    Return the folder, within the output folder, of each region that is saved, by region name.

    A folder is named after its region; characters other than letters, digits, ``.``, ``-`` and ``_`` become ``_``. Of
    two regions with one name, which may differ by upper and lower case, the second folder ends in ``_2``.

    Args:
        regions: values of the classes that a region unites, by region name; ``None`` or empty if there are none.
        save_regions: whether they are saved, an on/off option. Defaults to ``None``: if there are any.

    Raises:
        ValueError: if regions are to be saved and there are none.
    """
    if save_regions is not None and parse_switch("save_regions", save_regions) and not regions:
        raise ValueError(
            "save_regions: the task has no regions, neither in the settings of the checkpoint nor in the plan; name "
            "them as --regions '{\"whole tumor\": [1, 2, 3]}', or leave out save_regions."
        )
    if not regions or (save_regions is not None and not parse_switch("save_regions", save_regions)):
        return {}
    taken: set[str] = set()
    folders = {}
    for name in regions:
        safe = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
        folder, number = safe, 1
        while folder.lower() in taken:
            number += 1
            folder = f"{safe}_{number}"
        taken.add(folder.lower())
        folders[name] = f"{FOLDER}/{folder}"
    return folders
