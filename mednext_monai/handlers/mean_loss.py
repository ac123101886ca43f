"""The mean training loss of each epoch, for logs and curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ignite.metrics import Average
from monai.utils import CommonKeys

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["MeanLoss"]


class MeanLoss:
    """
    Ignite handler that puts the mean of the epoch's losses into ``engine.state.metrics``, where MONAI's
    ``StatsHandler`` and ``TensorBoardStatsHandler`` find it; put it before them.

    ignite's ``Average`` computes it. MONAI's trainer takes such a metric only as its key metric, of which it reports
    the highest value as the best, wrong for a loss.

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
