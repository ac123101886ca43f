"""Validation on patches after every epoch, and the moving average by which the original chooses its best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ignite.engine import Events

if TYPE_CHECKING:
    from ignite.engine import Engine
    from monai.engines import Evaluator

    from ..transforms import EpochSampler

__all__ = ["MovingAverage", "PatchValidation"]


class MovingAverage:
    """
    Ignite handler that adds the moving average of an engine's metric over its epochs, as ``<name>_average``.

    It begins with the first value; then it is ``momentum`` times itself plus the rest times the new value. An epoch
    whose value is NaN (no class occurs) leaves it as it is; in the original it would be NaN from then on. Put it before
    handlers that use the average.

    Args:
        name: of the metric.
        momentum: share of the old average. Defaults to 0.9, as published.

    Raises:
        ValueError: a momentum outside 0 ... 1.
    """

    def __init__(self, name: str, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0 ... 1, got {momentum}.")
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
        """Return what a resumed run must know: the average."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping) -> None:
        self.average = float(state["average"])


class PatchValidation:
    """
    Ignite handler that runs a validation on patches after each epoch and reports its metrics as the trainer's own.

    They are put into the trainer's ``engine.state.metrics``, where MONAI's handlers for logs, TensorBoard and MLflow
    find them; put it before those. (MONAI's ``ValidationHandler`` leaves them with the evaluator.) What ignite logs of
    every run of an engine, four lines, is left out.

    Args:
        validator: the evaluator.
        sampler: of the validator's patches; it is told the epoch, so that a resumed run goes on with the patches that
            it would have seen.
    """

    def __init__(self, validator: Evaluator, sampler: EpochSampler) -> None:
        self.validator = validator
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        self.validator.logger = logging.getLogger(f"{__name__}.validator")
        self.validator.logger.setLevel(logging.WARNING)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.epoch = engine.state.epoch - 1
        self.validator.run(engine.state.epoch)
        engine.state.metrics.update(self.validator.state.metrics)
