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

__all__ = ["PatchValidation"]


class PatchValidation:
    """
    Ignite handler that runs a validation after each epoch and keeps the moving average of its metric.

    Metric and average, ``name`` and ``name_average``, are put into the trainer's ``engine.state.metrics``, where
    MONAI's handlers for logs, TensorBoard and MLflow find them; put it before those. The average begins with the
    first value; then it is ``momentum`` times itself plus the rest times the new value. An epoch whose value is NaN
    (no class occurs) leaves it as it is; in the original it would be NaN from then on. What ignite logs of every run
    of an engine, four lines, is left out.

    Args:
        validator: the evaluator, with ``name`` among its metrics.
        sampler: of the validator's patches; it is told the epoch, so that a resumed run goes on with the patches that
            it would have seen. Defaults to ``None``: patches that do not depend on the epoch.
        name: of the metric. Defaults to "val_pooled_dice".
        momentum: share of the old average. Defaults to 0.9, as published.
        enabled: whether to validate at all, so that a config can turn it off. Defaults to ``True``.

    Raises:
        ValueError: a momentum outside 0 ... 1.
    """

    def __init__(
        self,
        validator: Evaluator,
        sampler: EpochSampler | None = None,
        name: str = "val_pooled_dice",
        momentum: float = 0.9,
        enabled: bool = True,
    ) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0 ... 1, got {momentum}.")
        self.validator = validator
        self.sampler = sampler
        self.name = name
        self.momentum = momentum
        self.enabled = enabled
        self.average = math.nan

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        self.validator.logger = logging.getLogger(f"{__name__}.validator")
        self.validator.logger.setLevel(logging.WARNING)
        if self.enabled:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.sampler is not None:
            self.sampler.epoch = engine.state.epoch - 1
        self.validator.run(engine.state.epoch)
        value = self.validator.state.metrics[self.name]
        if math.isnan(self.average):
            self.average = value
        elif not math.isnan(value):
            self.average = self.momentum * self.average + (1 - self.momentum) * value
        engine.state.metrics.update({self.name: value, f"{self.name}_average": self.average})

    def state_dict(self) -> dict:
        """Return what a resumed run must know: the average."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping) -> None:
        self.average = float(state["average"])
