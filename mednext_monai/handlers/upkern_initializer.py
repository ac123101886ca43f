"""UpKern as an ignite handler, for a training that a bundle config describes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..weights import read_state_dict, upkern

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["UpKernInitializer"]


class UpKernInitializer:
    """
    Ignite handler that initialises a network from a trained smaller-kernel one, once, when a training starts.

    It does nothing in a training that is resumed. Put it in the list before a handler that loads a checkpoint to
    resume from, so that in doubt the latter wins.

    Args:
        load_path: the checkpoint, any file that :py:func:`mednext_monai.weights.read_state_dict` takes; ``None`` for
            no initialisation.
        network: the network to initialise, wrapped by DistributedDataParallel or not.
        resume: whether this run resumes another. Defaults to ``False``.
        skip_heads: see :py:func:`mednext_monai.weights.upkern`. Defaults to ``False``.
        skip_stem: see :py:func:`mednext_monai.weights.upkern`. Defaults to ``False``.
        name: identifier of the ``logging`` logger to use. Defaults to ``None``, the engine's.

    Raises:
        FileNotFoundError: when the checkpoint is needed and does not exist.
    """

    def __init__(
        self,
        load_path: str | None,
        network: torch.nn.Module,
        resume: bool = False,
        skip_heads: bool = False,
        skip_stem: bool = False,
        name: str | None = None,
    ) -> None:
        if load_path is not None and not resume and not Path(load_path).is_file():
            raise FileNotFoundError(f"the checkpoint for UpKern, {load_path}, does not exist or is no file.")
        self.load_path = load_path
        self.network = network
        self.resume = resume
        self.skip_heads = skip_heads
        self.skip_stem = skip_stem
        self.logger = logging.getLogger(name)
        self._name = name
        self._done = load_path is None

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self._name is None:
            self.logger = engine.logger
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.

        Raises:
            ValueError: when the file is no checkpoint or does not fit the network; see ``upkern``.
        """
        if self._done:
            return
        if self.resume or engine.state.iteration > 0 or engine.state.epoch > 0:
            self.logger.info(f"The training is resumed: no initialisation from {self.load_path}.")
            self._done = True
            return
        parallel = isinstance(self.network, (DataParallel, DistributedDataParallel))
        network = self.network.module if parallel else self.network
        pretrained = read_state_dict(self.load_path)
        try:
            report = upkern(pretrained, network, self.skip_heads, self.skip_stem)
        except ValueError as error:
            raise ValueError(f"UpKern from {self.load_path}: {error}") from error
        self._done = True
        self.logger.info(f"{report} (from {self.load_path})")
