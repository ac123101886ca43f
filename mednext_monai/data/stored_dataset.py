"""Whole stored cases as a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import Dataset
from monai.transforms import apply_transform

__all__ = ["StoredDataset"]


class StoredDataset(Dataset):
    """
    MONAI's ``Dataset`` of cases, of which it transforms what is stored for them.

    Args:
        data: the cases.
        stored: what is stored for each of them, see :py:meth:`~mednext_monai.data.StoredCases.of`.
        transform: transform of a stored case. Defaults to ``None``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        stored: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Callable | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.stored = stored

    def _transform(self, index: int) -> Any:
        case = dict(self.stored[index])
        return case if self.transform is None else apply_transform(self.transform, case)
