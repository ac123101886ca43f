"""Checkpoints from which an interrupted training is resumed.

MONAI's ``CheckpointSaver`` writes in place and ignite's ``Checkpoint`` removes the previous file before it writes the
next, so that a run that is killed at that moment leaves none. MONAI's trainer creates its gradient scaler only when it
starts, so that a ``CheckpointLoader`` in a config cannot refer to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.networks.utils import get_state_dict

from ..weights import read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["TrainingCheckpoint"]


class TrainingCheckpoint:
    """
    Ignite handler that writes the complete state of a training after each epoch, and reads it to resume the training.

    The file holds the state dicts of ``save_dict``, of the trainer (epoch, iteration) and, in mixed precision, of its
    gradient scaler. Attach it as the last handler, so that the file includes all changes of the epoch.

    Args:
        path: the file, replaced atomically.
        save_dict: objects with ``state_dict`` and ``load_state_dict`` by name; the network's name should be
            ``model``, under which :py:func:`mednext_monai.weights.read_state_dict` finds it.
        weights_path: file for the state dict of ``save_dict["model"]`` alone, written after the last epoch.
            Defaults to ``None``: none is written.
        resume: whether to read the file at the start. Defaults to ``False``.
        interval: number of epochs between two checkpoints; the last epoch is always written. Defaults to 1.
        is_main_process: whether this process writes. Defaults to ``True``.

    Raises:
        FileNotFoundError: if the training is resumed and there is no such file.
    """

    def __init__(
        self,
        path: str,
        save_dict: Mapping[str, Any],
        weights_path: str | None = None,
        resume: bool = False,
        interval: int = 1,
        is_main_process: bool = True,
    ) -> None:
        if resume and not Path(path).is_file():
            raise FileNotFoundError(f"cannot resume: {path} does not exist; leave out --resume to start a new run.")
        self.path = path
        self.save_dict = dict(save_dict)
        self.weights_path = weights_path
        self.resume = resume
        self.interval = interval
        self.is_main_process = is_main_process
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not self.is_main_process:
            return
        last = engine.state.epoch == engine.state.max_epochs
        if last or engine.state.epoch % self.interval == 0:
            write_checkpoint({name: get_state_dict(item) for name, item in self._items(engine).items()}, self.path)
        if last and self.weights_path is not None:
            write_checkpoint(get_state_dict(self.save_dict["model"]), self.weights_path)
            self.logger.info(f"wrote the weights after the last epoch: {self.weights_path}")

    def load(self, engine: Engine) -> None:
        """
        Read the file and restore all states; ``max_epochs`` stays that of the trainer.

        Args:
            engine: the trainer.

        Raises:
            ValueError: if the file cannot be read, lacks a state, or is of a training that has reached its last epoch.
        """
        state, items, max_epochs = read_checkpoint(self.path), self._items(engine), engine.state.max_epochs
        missing = sorted(set(items) - set(state))
        if missing:
            raise ValueError(f"cannot resume from {self.path}: it lacks {missing}; found {sorted(state)}.")
        done = state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
        if done >= max_epochs:
            raise ValueError(
                f"cannot resume from {self.path}: it has completed {done} epochs and epochs is {max_epochs}; "
                "a larger --epochs continues the training."
            )
        Checkpoint.load_objects(items, state)
        engine.state.max_epochs = max_epochs
        self.logger.info(f"resumed from {self.path} after epoch {engine.state.epoch}")

    def _items(self, engine: Engine) -> dict[str, Any]:
        items = {**self.save_dict, "trainer": engine}
        if getattr(engine, "scaler", None) is not None:
            items["scaler"] = engine.scaler
        return items
