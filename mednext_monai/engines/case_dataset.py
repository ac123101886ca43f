"""The cases of a prediction, read and preprocessed one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from monai.data import Dataset

from ..data.checks import invalid_cases
from ..data.results import Results
from ..options import parse_switch
from ..transforms.preprocess import DIGEST
from .failures import reason

__all__ = ["ERROR", "CaseDataset"]

ERROR = "error"  # key of an item that is the reason why a case could not be read
logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """
    MONAI's ``Dataset`` for cases of which some may be finished or invalid.

    A case that cannot be read or preprocessed is the item ``{"id": ..., "error": reason}``, so that an error in the
    process of a data loader does not end the run. The item of any other case is the transformed dictionary; with
    ``results`` it has the digest of its result under ``result_digest``, computed before the image is read, so that an
    image that is replaced meanwhile never has the digest of the new one.

    The list of cases is read when it is first needed, so that it may be a
    :py:class:`~mednext_monai.data.case_lists.CaseList`.

    Args:
        data: dictionaries with ``id`` and ``image``.
        transform: as for ``Dataset``. Defaults to ``None``.
        results: what the run writes. Defaults to ``None``: no case is finished, and results have no digest.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Sequence[Callable] | Callable | None = None,
        results: Results | None = None,
    ) -> None:
        self._cases: Sequence[dict] = []
        self._total: int | None = None  # cases, once they are listed
        super().__init__(data, transform)
        self.results = results
        self.failures: dict[str, str] = {}  # the reason by the id of a case that is left out as invalid

    @property
    def data(self) -> Sequence[dict]:  # type: ignore[override]  # an attribute in MONAI
        """The cases that are not left out."""
        if self._total is None:
            self._cases = list(self._cases)
            self._total = len(self._cases)
        return self._cases

    @data.setter
    def data(self, cases: Sequence[dict]) -> None:
        self._cases = cases

    @property
    def total(self) -> int:
        """The number of cases, those included that are left out."""
        return len(self.data) if self._total is None else self._total

    def skip_finished(self, overwrite: bool = False) -> None:
        """
        Leave out the cases that are finished, and log how many.

        Args:
            overwrite: leave out none. Defaults to ``False``.
        """
        if self.results is None:
            return
        _ = self.results.settings_digest  # now, before the weights are loaded, and once for all processes that read
        if parse_switch("overwrite", overwrite):
            return
        finished = self.results.finished(self.data)
        self.data = [case for case in self.data if case["id"] not in finished]
        if finished:
            rest = f"{len(self.data)} are left" if self.data else "nothing is left to do"
            logger.info(
                f"{len(finished)} of {self.total} cases are finished, from the same images with the same settings, and "
                f"are skipped (--overwrite true repeats them); {rest}"
            )

    def leave_out_invalid(
        self, in_channels: int, spatial_dims: int | None = None, slice_axis: int | None = None
    ) -> None:
        """
        Check the images of all cases with :py:func:`~mednext_monai.data.checks.invalid_cases`, log which are invalid
        and leave them out.

        Args:
            in_channels: number of input channels of the network.
            spatial_dims, slice_axis: see :py:class:`~mednext_monai.data.checks.Expected`. Default to ``None``.
        """
        found = invalid_cases(self.data, in_channels, 2, spatial_dims, slice_axis) if self.data else {}
        self.failures.update(found)
        for case_id, problem in self.failures.items():
            logger.warning(f"{case_id} is left out: {problem}")
        self.data = [case for case in self.data if case["id"] not in self.failures]

    def _transform(self, index: int) -> Any:
        case = self.data[index]
        try:
            digest = {} if self.results is None else {DIGEST: self.results.digest(case)}
            return self.transform({**case, **digest})
        except Exception as error:  # depends on the library that reads the image
            return {"id": str(case.get("id", case.get("image"))), ERROR: reason(error)}
