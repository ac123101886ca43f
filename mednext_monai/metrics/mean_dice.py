"""MONAI's mean Dice without a score of 0 where there is none."""

from __future__ import annotations

import math

from monai.handlers import MeanDice as MonaiMeanDice

__all__ = ["MeanDice"]


class MeanDice(MonaiMeanDice):
    """
    MONAI's ``MeanDice`` with the same arguments; the mean is NaN if no case contains any of the classes.

    MONAI ignores the classes that a case does not contain. If nothing is left to average it returns 0, which cannot be
    told from a network that finds nothing.
    """

    def compute(self) -> float:
        """Return the mean Dice over the classes that occur in each case, NaN if none occurs in any case."""
        result = super().compute()
        return math.nan if self.metric_fn.get_buffer().isnan().all() else result
