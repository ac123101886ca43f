"""Which errors concern one case and which all, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..errors import diagnosis
from ..files import NO_SPACE

__all__ = ["CasesFailed", "concerns_all", "is_of_a_worker", "reason"]

MAX_SHOWN = 20  # cases in one message
WORKER = "DataLoader worker (pid"  # how torch begins its message about a process that was killed


class CasesFailed(ValueError):
    """
    Error at the end of a run for the cases that failed.

    Args:
        failures: the reason for each of them, by case id.
        total: number of all cases.
    """

    def __init__(self, failures: Mapping[str, str], total: int) -> None:
        self.failures, self.total = dict(failures), total
        listed = [f"  {case_id}: {text}" for case_id, text in sorted(self.failures.items())]
        if len(listed) > MAX_SHOWN:
            listed[MAX_SHOWN:] = [f"  ... and {len(listed) - MAX_SHOWN} more"]
        super().__init__(f"{len(self.failures)} of {total} cases could not be segmented:\n" + "\n".join(listed))

    def __reduce__(self) -> tuple:
        return type(self), (self.failures, self.total)


def reason(error: BaseException) -> str:
    """Return why a case failed, as one text: the sentence of this package, or else the first cause in its own words."""
    sentence = diagnosis(error)
    if sentence is not None:
        return sentence
    *_, cause = _chain(error)
    if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
        return f"not enough memory for this case: {cause}" if str(cause) else "not enough memory for this case."
    text = str(cause).strip()
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def concerns_all(error: BaseException) -> bool:
    """Return whether an error would also meet the next cases: a full disk, a GPU that failed, a process that ended."""
    failed_device = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    return is_of_a_worker(error) or any(
        getattr(item, "errno", None) in NO_SPACE or isinstance(item, failed_device) for item in _chain(error)
    )


def is_of_a_worker(error: BaseException) -> bool:
    """Return whether an error says that a process of a data loader was killed; torch raises it anywhere."""
    return any(isinstance(item, RuntimeError) and str(item).startswith(WORKER) for item in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, or while."""
    seen: set[int] = set()
    item: BaseException | None = error
    while item is not None and id(item) not in seen:
        seen.add(id(item))
        yield item
        item = item.__cause__ or (None if item.__suppress_context__ else item.__context__)
