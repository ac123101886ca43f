"""MONAI's mean Dice without a score of 0 where there is none, and that of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine
from monai.handlers import MeanDice as MonaiMeanDice

from .by_class import set_by_class

__all__ = ["MeanDice"]


class MeanDice(MonaiMeanDice):
    """
    MONAI's ``MeanDice``; the mean is NaN if no case contains any of the classes.

    MONAI ignores the classes that a case does not contain. If nothing is left to average it returns 0, which cannot be
    told from a network that finds nothing.

    Args:
        class_names: names of all classes, background first; the mean of each foreground class is then a metric, see
            :py:func:`~mednext_monai.metrics.by_class.set_by_class`. Needs ``include_background=False``. Defaults to
            ``None``: only the mean of all.
        args, kwargs: arguments of MONAI's ``MeanDice``.
    """

    def __init__(self, *args: Any, class_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.class_names = class_names

    def compute(self) -> float:
        """Return the mean Dice over the classes that occur in each case, NaN if none occurs in any case."""
        result = super().compute()
        return math.nan if self.metric_fn.get_buffer().isnan().all() else result

    def completed(self, engine: Engine, name: str) -> None:
        """Set the metrics of the engine."""
        super().completed(engine, name)
        if self.class_names is not None:
            set_by_class(engine, name, self.metric_fn.get_buffer().nanmean(0).tolist(), self.class_names)
