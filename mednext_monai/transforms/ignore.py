"""Voxels without annotation in a validation on whole volumes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

__all__ = ["ExcludeIgnoredd"]


class ExcludeIgnoredd(MapTransform):
    """
    Dictionary transform: exclude voxels without annotation from metrics of the foreground classes.

    Where the label has the ignore label, prediction and label become background, so that these voxels are neither true
    nor false positives nor false negatives of any class. MONAI's metrics have no ignore label, and its one-hot
    encoding fails on one. Without an ignore label nothing is changed.

    Args:
        keys: keys of class maps on one grid, ``(1, *spatial)``. Defaults to prediction and label.
        label_key: key of the label, one of ``keys``. Defaults to ``"label"``.
        ignore_label: value of voxels without annotation. Defaults to ``None``.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a class map has not the shape of the label.
    """

    def __init__(
        self,
        keys: KeysCollection = ("pred", "label"),
        label_key: str = "label",
        ignore_label: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key, self.ignore_label = label_key, ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.ignore_label is None:
            return d
        label = d[self.label_key]
        ignored = (label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)) == self.ignore_label
        for key in self.key_iterator(d):
            values = torch.as_tensor(d[key])
            if values.shape != ignored.shape:
                raise ValueError(
                    f"{key} must be a class map of the label's shape {tuple(ignored.shape)}, got {tuple(values.shape)}."
                )
            d[key] = values.masked_fill(ignored.to(values.device), 0)
        return d
