"""UpKern at the start of a training."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events

from ..weights import read_weights, upkern
from ..weights.kernel_interpolation import UpKernReport
from ..weights.state_dict import unwrap_parallel

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["UpKernInitializer"]


class UpKernInitializer:
    """
    Ignite handler that initializes a network from a trained one when a training starts: from one with another kernel
    size (UpKern), or from one of another task without its heads.

    It does nothing in a resumed training. Attach it before a handler that resumes from a checkpoint, so that the
    resumed checkpoint takes precedence.

    Args:
        load_path: the checkpoint, any file that :py:func:`mednext_monai.weights.read_weights` takes; ``None`` for
            no initialization.
        network: the network to initialize, wrapped by DistributedDataParallel or not.
        resume: whether this run resumes another one. Defaults to ``False``.
        skip_heads: see :py:func:`mednext_monai.weights.upkern`. Defaults to ``False``.
        skip_stem: see :py:func:`mednext_monai.weights.upkern`. Defaults to ``False``.
        name: name of the logger. Defaults to ``None``: the engine's logger.

    Raises:
        FileNotFoundError: if the checkpoint is needed and does not exist.
    """

    def __init__(
        self,
        load_path: str | None,
        network: torch.nn.Module,
        resume: bool = False,
        skip_heads: bool = False,
        skip_stem: bool | None = False,
        name: str | None = None,
    ) -> None:
        if load_path is not None and not resume and not Path(load_path).is_file():
            raise FileNotFoundError(f"the checkpoint to start from, {load_path}, does not exist or is not a file.")
        self.load_path = load_path
        self.network = network
        self.resume = resume
        self.skip_heads = skip_heads
        self.skip_stem = skip_stem
        self.logger = logging.getLogger(name)
        self._name = name
        self._done = load_path is None
        self._pretrained: dict[str, torch.Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self._name is None:
            self.logger = engine.logger
        engine.add_event_handler(Events.STARTED, self)

    def check(self) -> None:
        """
        Read the checkpoint and check that it matches the network, before a training is prepared; change nothing.

        Raises:
            ValueError: as when the training starts.
        """
        if not self._done and not self.resume:
            self._pretrained = read_weights(str(self.load_path))
            self._initialize(copy.deepcopy(unwrap_parallel(self.network)))

    def __call__(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.

        Raises:
            ValueError: if the file is not a checkpoint or does not match the network; see ``upkern``.
        """
        if self._done:
            return
        if self.resume or engine.state.iteration > 0 or engine.state.epoch > 0:
            self.logger.info(f"The training is resumed: no initialization from {self.load_path}.")
            self._done = True
            return
        if self._pretrained is None:
            self._pretrained = read_weights(str(self.load_path))
        report = self._initialize(self.network)
        self._done, self._pretrained = True, None
        self.logger.info(f"{report} (from {self.load_path})")

    def _initialize(self, network: torch.nn.Module) -> UpKernReport:
        try:
            return upkern(self._pretrained or {}, network, self.skip_heads, self.skip_stem)
        except ValueError as error:
            raise ValueError(f"UpKern from {self.load_path}: {error}") from error
