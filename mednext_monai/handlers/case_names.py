"""The names of the cases in a batch, for messages and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.utils import ImageMetaKey, ensure_tuple

from ..data.dataset import strip_ending

__all__ = ["case_names"]


def case_names(batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Return the name of each sample of a batch: its ``id``, or the file name of its image if it has none.

    Args:
        batch: a collated batch, or a decollated one with one dictionary for each sample.
    """
    if isinstance(batch, Mapping):
        if "id" in batch:
            return [str(name) for name in ensure_tuple(batch["id"])]
        files = getattr(batch["image"], "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ)
        if files is None:
            return [f"sample {index}" for index in range(len(batch["image"]))]
        return [strip_ending(file) for file in ensure_tuple(files)]
    return [case_names({**sample, "image": sample["image"][None]})[0] for sample in batch]
