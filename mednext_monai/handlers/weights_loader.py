"""Loading the weights that an evaluation or an inference uses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events

from ..weights import load_weights

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["WeightsLoader"]


class WeightsLoader:
    """
    Ignite handler that loads a checkpoint into a network, once, at the start of a run or when called before it.

    A config calls it among its checks, so that a checkpoint that does not match is an error before the first image. In
    a program that only runs the engine, the attached handler loads. MONAI's ``CheckpointLoader`` takes fewer layouts
    than :py:func:`mednext_monai.weights.load_weights`, which does the work here.

    Args:
        load_path: the checkpoint.
        network: the network, wrapped by DataParallel or DistributedDataParallel or not.

    Raises:
        ValueError: if ``load_path`` is not a path.
    """

    def __init__(self, load_path: str | Path, network: torch.nn.Module) -> None:
        if not isinstance(load_path, (str, Path)):
            raise ValueError(f"load_path must be the path of a checkpoint, got {load_path!r}.")
        self.load_path = load_path
        self.network = network
        self.logger = logging.getLogger(__name__)
        self._loaded = False

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """
        Load the weights, unless this was done before.

        Args:
            engine: the evaluator, not used. Defaults to ``None``, for a call before the run.

        Raises:
            FileNotFoundError, ValueError: as :py:func:`mednext_monai.weights.load_weights`.
        """
        if not self._loaded:
            description = load_weights(self.load_path, self.network)
            self._loaded = True
            self.logger.info(f"loaded {self.load_path}: {description}")
