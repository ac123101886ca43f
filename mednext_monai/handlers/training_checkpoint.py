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

from ..weights import carry_settings, read_checkpoint, write_checkpoint
from ..weights.released import is_trained
from ..weights.settings import settings_of

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["TrainingCheckpoint", "check_start"]

logger = logging.getLogger(__name__)
LAST, WEIGHTS, BEST = "last.pt", "model.pt", "model_best.pt"


def check_start(
    folder: str | Path,
    epochs: int,
    run: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """
    Check, before anything is computed, that a training can be resumed, or that a new one replaces no other.

    Args:
        folder: folder of ``last.pt``, ``model.pt`` and ``model_best.pt``.
        epochs: number of epochs of the training, those before it was resumed included.
        run: see :py:class:`TrainingCheckpoint`. Defaults to ``None``.
        resume: whether the training is resumed. Defaults to ``False``.
        overwrite: whether a new training may replace these files. Defaults to ``False``.

    Raises:
        FileNotFoundError: if the training is resumed and there is no checkpoint.
        ValueError: if the checkpoint cannot be read, is of a training with another ``run`` or has reached its last
            epoch; if a new training would replace a file; or if both ``resume`` and ``overwrite`` are true.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite are both true: --resume true goes on, --overwrite true starts anew.")
    if resume:
        path = Path(folder, LAST)
        state, source = _read(path)
        _check_state(state, source, epochs, run or {}, {"model", "optimizer", "trainer"})
        return
    files = [Path(folder, name) for name in (LAST, previous_path(LAST).name, WEIGHTS, BEST)]
    existing = [file for file in files if is_trained(file)]
    if existing and not overwrite:
        raise ValueError(
            f"ckpt_dir: {existing[0]} exists and would be replaced by this training. To continue the training that "
            f"wrote it, add --resume true (needs {LAST}); to replace it, --overwrite true; to keep both, another "
            "--ckpt_dir."
        )


class TrainingCheckpoint:
    """
    Ignite handler that writes the complete state of a training after each epoch, and reads it to resume the training.

    The file holds the state dicts of ``save_dict``, of the trainer (epoch, iteration), in mixed precision of its
    gradient scaler, and ``run``. Attach it as the last handler, so that the file includes all changes of the epoch. The
    file of the checkpoint before, ``last.previous.pt`` for ``last.pt``, is kept and read if the last one is damaged.

    What the user states takes effect on a resumed training: the options of optimizers and learning rate schedules are
    those of the new run, and a schedule of which one has changed is computed for the epoch that it has reached, where
    ``torch.optim``'s own ``load_state_dict`` would silently go back to the old ones. What cannot change, ``run``, is
    compared, and a difference is an error. The precision may change: a gradient scaler of which the file has no state
    starts anew.

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
        settings: what every state dict of ``save_dict["model"]`` carries from now on, also those that other handlers
            write; see :py:func:`mednext_monai.weights.training_settings`. A resumed training keeps what the one before
            was initialized from. Defaults to ``None``: nothing.

    Raises:
        FileNotFoundError: if the training is resumed and there is no such file.
    """

    def __init__(
        self,
        path: str | Path,
        save_dict: Mapping[str, Any],
        weights_path: str | Path | None = None,
        resume: bool = False,
        interval: int = 1,
        is_main_process: bool = True,
        run: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if resume:
            _refuse_absent(Path(path))
        self.path = Path(path)
        self.save_dict = dict(save_dict)
        self.weights_path = weights_path
        self.resume = resume
        self.interval = interval
        self.is_main_process = is_main_process
        self.run = dict(run or {})
        self.logger = logger
        self._is_whole = False  # whether the file at path is a whole checkpoint of this training
        self.settings = None if settings is None else dict(settings)
        if self.settings is not None:
            carry_settings(self.save_dict["model"], self.settings)

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
            self._write({**states, "run": self.run})
        if last and self.weights_path is not None:
            write_checkpoint(get_state_dict(self.save_dict["model"]), self.weights_path)
            self.logger.info(f"wrote the weights after the last epoch: {self.weights_path}")

    def _write(self, content: Mapping[str, Any]) -> None:
        """Write the file; keep the one before if it is whole and of this training, and none of another training."""
        previous = previous_path(self.path)
        write_checkpoint(content, self.path, previous if self._is_whole else None)
        if not self._is_whole and not self.resume:
            previous.unlink(missing_ok=True)
        self._is_whole = True

    def load(self, engine: Engine) -> None:
        """
        Read the file and restore all states; the number of epochs and their length stay those of the trainer.

        Args:
            engine: the trainer.

        Raises:
            ValueError: if the file cannot be read, lacks a state, is of a training with another ``run``, or of one that
                has reached its last epoch.
        """
        (state, source), items = _read(self.path), self._items(engine)
        if "scaler" in items and "scaler" not in state:
            del items["scaler"]
            self.logger.warning(f"resumed with another option: {source} is of a training without mixed precision")
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        done = _check_state(state, source, max_epochs, self.run, set(items))
        if self.settings is not None:
            self.settings["initialized_from"] = (settings_of(state["model"]) or {}).get("initialized_from")
        stated = {name: _options(item) for name, item in items.items()}
        Checkpoint.load_objects(items, state)
        for name, item in items.items():
            for change in _restate(item, stated[name]):
                self.logger.warning(f"resumed with another option: {name}: {change}")
        engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        engine.state.iteration = done * epoch_length
        self._is_whole = source == self.path
        self.logger.info(f"resumed from {source} after epoch {engine.state.epoch}")

    def _items(self, engine: Engine) -> dict[str, Any]:
        items = {**self.save_dict, "trainer": engine}
        if getattr(engine, "scaler", None) is not None:
            items["scaler"] = engine.scaler
        return items


def previous_path(path: str | Path) -> Path:
    """Return the path under which the checkpoint before the one at ``path`` is kept."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _refuse_absent(path: Path) -> None:
    if not path.is_file() and not previous_path(path).is_file():
        raise FileNotFoundError(f"cannot resume: {path} does not exist; leave out --resume to start a new run.")


def _read(path: Path) -> tuple[dict[str, Any], Path]:
    """Read the checkpoint, or if that fails the one before; return its content and its path."""
    _refuse_absent(path)
    previous = previous_path(path)
    try:
        return _read_mapping(path), path
    except (FileNotFoundError, ValueError) as error:
        if not previous.is_file():
            raise
        try:
            state = _read_mapping(previous)
        except ValueError as second:
            raise ValueError(f"{error} The one before it cannot be used either: {second}") from error
        logger.warning(f"{error} Resuming from the checkpoint before it, {previous}.")
        return state, previous


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not the state of a training: it holds an object of type {type(content).__name__}.")
    return content


def _check_state(state: Mapping[str, Any], path: Path, epochs: int, run: Mapping[str, Any], needed: set[str]) -> int:
    """Refuse a state from which this training cannot be resumed; return the number of epochs that it has completed."""
    missing = sorted(needed - set(state))
    if missing:
        raise ValueError(f"cannot resume from {path}: it lacks {missing}; found {sorted(state)}.")
    before = state.get("run", {})
    changed = [
        f"{name} was {before[name]!r} and is {value!r}"
        for name, value in run.items()
        if value is not None and before.get(name) not in (None, value)
    ]
    if changed:
        raise ValueError(
            f"cannot resume from {path}: {'; '.join(changed)}. A resumed training continues the same task; "
            "start a new one with another ckpt_dir."
        )
    done: int = state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
    if done >= epochs:
        raise ValueError(
            f"cannot resume from {path}: it has completed {done} epochs and epochs is {epochs}; "
            "a larger --epochs continues the training."
        )
    return done


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
