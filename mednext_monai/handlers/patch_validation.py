"""Validation on patches after every epoch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ignite.engine import Events

if TYPE_CHECKING:
    from ignite.engine import Engine
    from monai.engines import Evaluator

    from ..data.patches import EpochSampler

__all__ = ["PatchValidation"]


class PatchValidation:
    """
    Ignite handler that runs a validation on patches after each epoch and copies its metrics to the trainer.

    They are added to the trainer's ``engine.state.metrics``, where MONAI's handlers for logs, TensorBoard and MLflow
    find them; attach it before those. (MONAI's ``ValidationHandler`` leaves them in the evaluator.) The four lines that
    ignite logs for each run of an engine are suppressed.

    Args:
        validator: the evaluator.
        sampler: sampler of the validator's patches; its epoch is set, so that a resumed run continues with the same
            patches as an uninterrupted one.
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
