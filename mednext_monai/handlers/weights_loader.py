"""Loading the weights that an evaluation or an inference uses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events

from ..networks import Ensemble
from ..weights import load_weights, read_settings

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["SharedCheckpointLoader", "WeightsLoader"]


class WeightsLoader:
    """
    Ignite handler that loads a checkpoint into a network, once, at the start of a run or when called before it.

    A config calls it among its checks, so that a checkpoint that does not match is an error before the first image. In
    a program that only runs the engine, the attached handler loads. MONAI's ``CheckpointLoader`` takes fewer layouts
    than :py:func:`mednext_monai.weights.load_weights`, which does the work here.

    Args:
        load_path: the checkpoint, or one for each member of an ensemble.
        network: the network, wrapped by DataParallel or DistributedDataParallel or not; or an
            :py:class:`~mednext_monai.networks.Ensemble`.

    Raises:
        ValueError: if ``load_path`` is not a path or a list of paths, or if their number is not that of the networks.
    """

    def __init__(self, load_path: str | Path | Sequence[str | Path], network: torch.nn.Module) -> None:
        self.paths = [load_path] if isinstance(load_path, (str, Path)) else load_path
        if not isinstance(self.paths, (list, tuple)) or not all(isinstance(path, (str, Path)) for path in self.paths):
            raise ValueError(f"load_path must be the path of a checkpoint, or a list of them, got {load_path!r}.")
        self.network = network
        self.networks = list(network.members) if isinstance(network, Ensemble) else [network]
        if len(self.paths) != len(self.networks):
            raise ValueError(f"load_path must name {len(self.networks)} checkpoint(s), got {load_path!r}.")
        self.logger = logging.getLogger(__name__)
        self._loaded = False

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.STARTED, self)

    def check(self) -> None:
        """
        Check that the checkpoints exist and can be read, without loading them into the network.

        Raises:
            FileNotFoundError, ValueError: as :py:func:`mednext_monai.weights.read_settings`.
        """
        for path in self.paths:
            read_settings(path)

    def __call__(self, engine: Engine | None = None) -> None:
        """
        Load the weights, unless this was done before.

        Args:
            engine: the evaluator, not used. Defaults to ``None``, for a call before the run.

        Raises:
            FileNotFoundError, ValueError: as :py:func:`mednext_monai.weights.load_weights`.
        """
        if not self._loaded:
            for path, network in zip(self.paths, self.networks):
                self.logger.info(f"loaded {path}: {load_weights(path, network)}")
            self._loaded = True


class SharedCheckpointLoader:
    """
    Ignite handler that attaches a :py:class:`WeightsLoader` which other items of a config use, too.

    MONAI's federated learning evaluates the weights of its server: it disables each handler of an evaluation whose name
    contains ``CheckpointLoader``, which would replace them.

    Args:
        loader: the loader.
    """

    def __init__(self, loader: WeightsLoader) -> None:
        self.loader = loader

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator.
        """
        self.loader.attach(engine)
