"""Preprocessing of an image for networks that were trained with other settings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .preprocess import Preprocessd, volume_of

__all__ = ["PreprocessOthersd"]


class PreprocessOthersd(MapTransform):
    """
    Add images that are preprocessed from the same files as another one, which is read but not preprocessed.

    It comes before the :py:class:`Preprocessd` of that image, which gets a ``MetaTensor``: the files are read once.

    Args:
        keys: key of the image, one only, as for :py:class:`Preprocessd`.
        others: for each added key the ``spacing``, ``normalization``, ``intensity`` and ``orientation`` of
            :py:class:`Preprocessd`.
        allow_missing_keys: whether the image may be missing. Defaults to ``False``.

    Raises:
        ValueError: as for :py:class:`Preprocessd`.
    """

    def __init__(
        self, keys: KeysCollection, others: Mapping[str, Mapping[str, Any]], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.others = {
            key: Preprocessd(self.keys, **settings, label_key=None, allow_missing_keys=allow_missing_keys)
            for key, settings in others.items()
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for image in self.key_iterator(d):
            array, affine, meta = volume_of(d, image)
            d[image] = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine), meta=meta)
            for key, preprocess in self.others.items():
                d[key] = preprocess(d)[image]
        return d
