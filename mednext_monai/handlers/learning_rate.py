"""The learning rate as a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ignite.engine import Events

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["LearningRate"]


class LearningRate:
    """
    Ignite handler that adds the learning rate of each epoch to ``engine.state.metrics``, where MONAI's handlers for
    logs, TensorBoard and MLflow find it.

    Attach it before the handler of the schedule, which changes the rate at the end of an epoch, and before those
    handlers. (MONAI's ``LrScheduleHandler`` only prints the rate.)

    Args:
        optimizer: the optimizer, of whose parameter groups the first one counts.
        name: the metric's name. Defaults to ``"learning_rate"``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str = "learning_rate") -> None:
        self.optimizer = optimizer
        self.name = name

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.metrics[self.name] = float(self.optimizer.param_groups[0]["lr"])
