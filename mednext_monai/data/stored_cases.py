"""The stored cases of a training, which are preprocessed when they are first needed.

A config lists the files of its cases, which tools read and replace. Its data sets look up what is stored for them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence

from .case_lists import CaseList
from .dataset import named_cases
from .store import preprocess_dataset, preprocessed_cases

__all__ = ["StoredCases"]


class StoredCases:
    """
    The stored cases of the training and the validation of a run.

    A run calls :py:meth:`prepare` in all its processes. Where a tool uses the data sets without a run, the cases are
    preprocessed at the first use of one; processes of a data loader then share the work by the locks of the store.

    Args:
        training: cases as :py:func:`~mednext_monai.data.training_cases` returns them; without an ``id``, each gets the
            name of its image file.
        validation: the same; a case may be in both lists.
        settings, cache_dir, num_workers, progress, rank, local_rank, world_size: see
            :py:func:`~mednext_monai.data.preprocessed_cases`.
    """

    def __init__(
        self,
        training: Sequence[Mapping],
        validation: Sequence[Mapping],
        settings: Mapping,
        cache_dir: str,
        num_workers: int = 0,
        progress: bool = False,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.training, self.validation = named_cases(training), named_cases(validation)
        self.settings, self.cache_dir = settings, cache_dir
        self.num_workers, self.progress = num_workers, progress
        self.rank, self.local_rank, self.world_size = rank, local_rank, world_size
        self._sides: dict[str, list[dict]] | None = None

    def prepare(self) -> None:
        """
        Preprocess the cases that are not stored yet. In a distributed run, call this in all processes.

        Raises:
            CasesError, OSError, ValueError: see :py:func:`~mednext_monai.data.preprocessed_cases`.
        """
        if self._sides is None:
            self._sides = preprocessed_cases(
                self.training,
                self.validation,
                self.settings,
                self.cache_dir,
                self.num_workers,
                self.progress,
                self.rank,
                self.local_rank,
                self.world_size,
            )

    def of(self, side: str) -> CaseList:
        """
        Return the stored cases of the training or of the validation, in their order, which are made at their first use.

        Args:
            side: ``"training"`` or ``"validation"``.
        """
        return CaseList(self._stored, side)

    def _stored(self, side: str) -> list[dict]:
        if self._sides is None and multiprocessing.current_process().daemon:  # of a data loader: it has no processes
            return preprocess_dataset(getattr(self, side), self.settings, self.cache_dir, 0, False)
        self.prepare()
        assert self._sides is not None
        return self._sides[side]
