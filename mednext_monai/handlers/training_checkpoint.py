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

import torch
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

    The file holds the state dicts of ``save_dict``, of the trainer (epoch, iteration), in mixed precision of its
    gradient scaler, and ``run``. Attach it as the last handler, so that the file includes all changes of the epoch.

    What the user states takes effect on a resumed training: the options of optimizers and learning rate schedules are
    those of the new run, and a schedule of which one has changed is computed for the epoch that it has reached, where
    ``torch.optim``'s own ``load_state_dict`` would silently go back to the old ones. What cannot change, ``run``, is
    compared, and a difference is an error.

    Args:
        path: the file, replaced atomically.
        save_dict: objects with ``state_dict`` and ``load_state_dict`` by name; the network's name should be
            ``model``, under which :py:func:`mednext_monai.weights.read_state_dict` finds it.
        weights_path: file for the state dict of ``save_dict["model"]`` alone, written after the last epoch.
            Defaults to ``None``: none is written.
        resume: whether to read the file at the start. Defaults to ``False``.
        interval: number of epochs between two checkpoints; the last epoch is always written. Defaults to 1.
        is_main_process: whether this process writes. Defaults to ``True``.
        run: what a resumed training must have in common with the one before, by the name of the option that sets it:
            plain values, lists and dictionaries; ``None`` is not compared. Defaults to ``None``: nothing.

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
        run: Mapping[str, Any] | None = None,
    ) -> None:
        if resume and not Path(path).is_file():
            raise FileNotFoundError(f"cannot resume: {path} does not exist; leave out --resume to start a new run.")
        self.path = path
        self.save_dict = dict(save_dict)
        self.weights_path = weights_path
        self.resume = resume
        self.interval = interval
        self.is_main_process = is_main_process
        self.run = dict(run or {})
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
            states = {name: get_state_dict(item) for name, item in self._items(engine).items()}
            write_checkpoint({**states, "run": self.run}, self.path)
        if last and self.weights_path is not None:
            write_checkpoint(get_state_dict(self.save_dict["model"]), self.weights_path)
            self.logger.info(f"wrote the weights after the last epoch: {self.weights_path}")

    def load(self, engine: Engine) -> None:
        """
        Read the file and restore all states; the number of epochs and their length stay those of the trainer.

        Args:
            engine: the trainer.

        Raises:
            ValueError: if the file cannot be read, lacks a state, is of a training with another ``run``, or of one that
                has reached its last epoch.
        """
        state, items = read_checkpoint(self.path), self._items(engine)
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        missing = sorted(set(items) - set(state))
        if missing:
            raise ValueError(f"cannot resume from {self.path}: it lacks {missing}; found {sorted(state)}.")
        done = state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
        if done >= max_epochs:
            raise ValueError(
                f"cannot resume from {self.path}: it has completed {done} epochs and epochs is {max_epochs}; "
                "a larger --epochs continues the training."
            )
        self._check_run(state.get("run", {}))
        stated = {name: _options(item) for name, item in items.items()}
        Checkpoint.load_objects(items, state)
        for name, item in items.items():
            for change in _restate(item, stated[name]):
                self.logger.warning(f"resumed with another option: {name}: {change}")
        engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        engine.state.iteration = done * epoch_length
        self.logger.info(f"resumed from {self.path} after epoch {engine.state.epoch}")

    def _items(self, engine: Engine) -> dict[str, Any]:
        items = {**self.save_dict, "trainer": engine}
        if getattr(engine, "scaler", None) is not None:
            items["scaler"] = engine.scaler
        return items

    def _check_run(self, before: Mapping[str, Any]) -> None:
        changed = [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in self.run.items()
            if value is not None and before.get(name) not in (None, value)
        ]
        if changed:
            raise ValueError(
                f"cannot resume from {self.path}: {'; '.join(changed)}. A resumed training continues the same task; "
                "start a new one with another ckpt_dir."
            )


# What an optimizer's group or a schedule holds beside its options.
STATE = {"params", "lr", "initial_lr", "last_epoch", "_step_count", "_last_lr", "_is_initial"}
STATE |= {"_get_lr_called_within_step"}


def _options(item: Any) -> list[dict[str, Any]]:
    """Return the options of an optimizer's groups or of a schedule, without their state; nothing for other objects."""
    holders: list[dict] = []
    if isinstance(item, torch.optim.Optimizer):
        holders = item.param_groups
    elif isinstance(item, torch.optim.lr_scheduler.LRScheduler):
        holders = [item.state_dict()]
    return [{name: value for name, value in holder.items() if name not in STATE} for holder in holders]


def _restate(item: Any, stated: list[dict[str, Any]]) -> list[str]:
    """Give an optimizer or a schedule whose state was loaded the options that were stated; return what changes."""
    changes = [
        f"{name} was {loaded.get(name)} and is {value}"
        for loaded, options in zip(_options(item), stated)
        for name, value in options.items()
        if loaded.get(name) != value
    ]
    if isinstance(item, torch.optim.Optimizer):
        for group, options in zip(item.param_groups, stated):
            group.update(options)
    elif changes:  # else the rate that was loaded is right to the last bit
        vars(item).update(stated[0])
        item._last_lr = item._get_closed_form_lr()
        for group, base, rate in zip(item.optimizer.param_groups, item.base_lrs, item._last_lr):
            group["initial_lr"], group["lr"] = base, rate
    return changes
