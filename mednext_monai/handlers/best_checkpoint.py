"""Writing the weights with the best validation metric.

MONAI's ``CheckpointSaver`` writes in place and ignite's ``Checkpoint`` removes the previous file before it writes the
next, so that a run that is killed at that moment leaves none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events
from monai.networks.utils import get_state_dict

from ..weights import write_checkpoint

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["BestCheckpoint", "best_metric"]


def best_metric(best_by: str, pseudo_dice_batches: int, key_metric: str) -> str:
    """
    Return the name of the metric for ``BestCheckpoint``.

    Args:
        best_by: "volume" for the metric of the validation on whole volumes, "patches" for the moving average of the
            validation on patches, as published.
        pseudo_dice_batches: number of batches of the validation on patches, 0 for none.
        key_metric: the metric of the validation on whole volumes.

    Raises:
        ValueError: if ``best_by`` has another value, or is "patches" without a validation on patches.
    """
    if best_by not in ("volume", "patches"):
        raise ValueError(f"best_by must be 'volume' or 'patches', got {best_by!r}.")
    if best_by == "patches" and not pseudo_dice_batches > 0:
        raise ValueError("best_by 'patches' needs pseudo_dice_batches above 0, got 0.")
    return key_metric if best_by == "volume" else "val_pooled_dice_average"


class BestCheckpoint:
    """
    Ignite handler that writes the network's weights whenever a metric improves.

    It may be attached to several evaluators; runs without the metric are ignored. A metric that is NaN is no score: it
    is never the best, and a warning says so once.

    Args:
        network: the network, wrapped by DistributedDataParallel or not; a plain state dict is written.
        path: the file to write, replaced atomically.
        is_main_process: whether this process writes. Defaults to ``True``.
        metric: name of the metric, higher is better. Defaults to ``None``: the engine's key metric.
    """

    def __init__(
        self, network: torch.nn.Module, path: str, is_main_process: bool = True, metric: str | None = None
    ) -> None:
        self.network = network
        self.path = path
        self.is_main_process = is_main_process
        self.metric = metric
        self.best = -math.inf
        self._is_reported = False
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: an evaluator; attach the handler after the one that computes the metric.
        """
        # MONAI takes the first value as the best, even NaN, unless there is a best one already
        engine.state.best_metric, engine.state.best_metric_epoch = -math.inf, 0
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        name = self.metric or engine.state.key_metric_name
        if name not in engine.state.metrics:
            return
        value = engine.state.metrics[name]
        if math.isnan(value):
            self._report_no_score(name)
        elif value > self.best:
            self.best = float(value)
            if self.is_main_process:
                write_checkpoint(get_state_dict(self.network), self.path)
                self.logger.info(f"{name} {self.best:.4f} is the best so far: wrote {self.path}")

    def _report_no_score(self, name: str) -> None:
        if self.is_main_process and not self._is_reported:
            self._is_reported = True
            self.logger.warning(
                f"{name} has no score: the validation has no foreground. {self.path} is written once there is a score."
            )

    def state_dict(self) -> dict:
        """Return the best value, for a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping) -> None:
        self.best = state["best"]
