"""The mean training loss of each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ignite.metrics import Average
from monai.utils import CommonKeys

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["MeanLoss"]


class MeanLoss:
    """
    Ignite handler that adds the mean of the losses of an epoch to ``engine.state.metrics``, where MONAI's
    ``StatsHandler`` and ``TensorBoardStatsHandler`` find it; attach it before those.

    It attaches ignite's ``Average``. MONAI's trainer accepts such a metric only as key metric, whose highest value it
    reports as the best, which is wrong for a loss.

    Args:
        name: the metric's name. Defaults to ``"mean_train_loss"``.
    """

    def __init__(self, name: str = "mean_train_loss") -> None:
        self.name = name

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer, decollating or not.
        """
        Average(lambda output: (output[0] if isinstance(output, list) else output)[CommonKeys.LOSS]).attach(
            engine, self.name
        )
