"""The moving average of a metric over the epochs, by which the original selects its best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ignite.engine import Events

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["MovingAverage"]


class MovingAverage:
    """
    Ignite handler that adds the exponential moving average of a metric over the epochs, as ``<name>_average``.

    The average starts with the first value and is then ``momentum * average + (1 - momentum) * value``. An epoch
    whose value is NaN (no class occurs) does not change it; in the original it would remain NaN. Attach the handler
    before handlers that use the average.

    Args:
        name: name of the metric.
        momentum: weight of the previous average. Defaults to 0.9, as published.

    Raises:
        ValueError: if ``momentum`` is not between 0 and 1.
    """

    def __init__(self, name: str, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}.")
        self.name = name
        self.momentum = momentum
        self.average = math.nan

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: an evaluator or a trainer that has the metric.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = engine.state.metrics[self.name]
        if math.isnan(self.average):
            self.average = value
        elif not math.isnan(value):
            self.average = self.momentum * self.average + (1 - self.momentum) * value
        engine.state.metrics[f"{self.name}_average"] = self.average

    def state_dict(self) -> dict:
        """Return the average, for a checkpoint."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping) -> None:
        self.average = float(state["average"])
