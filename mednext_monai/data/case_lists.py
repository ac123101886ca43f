"""Lists of cases that are made when they are first used.

A tool that looks at a workflow, such as MONAI's ``check_properties``, builds its data sets and engines on a computer
that may have no data yet. What is wrong with the data is said by the run, not by the look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, overload

from .dataset import inference_cases

__all__ = ["CaseList", "InferenceCases"]


class CaseList(Sequence[dict]):
    """
    The list that a function returns, which is called once, at the first use of an item or of the length.

    Args:
        make: the function.
        args, kwargs: its arguments.
    """

    def __init__(self, make: Callable[..., list[dict]], *args: Any, **kwargs: Any) -> None:
        self._make = partial(make, *args, **kwargs)
        self._cases: list[dict] | None = None

    def _list(self) -> list[dict]:
        if self._cases is None:
            self._cases = self._make()
        return self._cases

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...
    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        return self._list()[index]

    def __len__(self) -> int:
        return len(self._list())


class InferenceCases(CaseList):
    """
    The list of :py:func:`~mednext_monai.data.inference_cases`.

    Args:
        kwargs: its arguments.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(inference_cases, **kwargs)
