"""Post-processing of a class map: of some classes, only the largest component stays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from ..evaluation.postprocessing import apply_postprocessing, read_postprocessing
from ..preprocessing.geometry import spacing_of

__all__ = ["KeepComponentsd"]


class KeepComponentsd(MapTransform):
    """
    Apply the decision of ``mednext find-postprocessing`` or ``cross-validate`` to class maps.

    MONAI's ``KeepLargestConnectedComponentd`` keeps one of several components of equal size and connects voxels by
    corners unless told otherwise; the original keeps all of them and connects by faces.

    Args:
        keys: keys of class maps, ``MetaTensor`` ``(1, X, Y, Z)``.
        decision: the file of the decision, or the ``postprocessing.json`` of nnU-Net v1.
        allow_missing_keys: whether keys may be missing. Defaults to ``False``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not such a file.
    """

    def __init__(self, keys: KeysCollection, decision: str | PathLike, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.postprocessing = read_postprocessing(decision)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            affine = d[key].affine
            spacing = tuple(float(edge) for edge in spacing_of(affine.numpy()))
            kept = apply_postprocessing(d[key].numpy(force=True)[0], self.postprocessing, spacing)
            meta = {name: value for name, value in d[key].meta.items() if name != MetaKeys.AFFINE}
            d[key] = MetaTensor(torch.from_numpy(kept[None]), affine=affine, meta=meta)
        return d
