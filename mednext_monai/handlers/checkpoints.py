"""Checkpoints that survive a kill at any moment, and the resuming of a run from them.

MONAI's ``CheckpointSaver`` writes in place and ignite's ``Checkpoint`` removes the previous file before it writes the
next, so that a run killed at that moment is left with none; and MONAI's trainer makes its gradient scaler only when it
starts, so that a ``CheckpointLoader`` built from a config cannot name it. Hence these two.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events

from ..files import atomic_path

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["BestCheckpoint", "RandomStates", "TrainingCheckpoint", "best_metric", "save_atomically", "state_dict_of"]


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` by way of a temporary file: there is always a whole file, old or new."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def state_dict_of(item: Any) -> dict:
    """Return the state dict without the wrapper of DistributedDataParallel or DataParallel."""
    return getattr(item, "module", item).state_dict() if isinstance(item, torch.nn.Module) else item.state_dict()


def best_metric(best_by: str, pseudo_dice_batches: int, key_metric: str) -> str:
    """
    Return the metric for ``BestCheckpoint``: that of the validation on whole volumes, or the moving average on patches.

    Args:
        best_by: "volume", or "patches" as published.
        pseudo_dice_batches: batches of the validation on patches, 0 for none.
        key_metric: of the validation on whole volumes.

    Raises:
        ValueError: for another ``best_by``, or for "patches" when there is no such validation.
    """
    if best_by not in ("volume", "patches"):
        raise ValueError(f"best_by must be 'volume' or 'patches', got {best_by!r}.")
    if best_by == "patches" and not pseudo_dice_batches > 0:
        raise ValueError("best_by 'patches' needs pseudo_dice_batches above 0, got 0.")
    return key_metric if best_by == "volume" else "val_pooled_dice_average"


class BestCheckpoint:
    """
    Ignite handler that writes the network's weights when a metric has improved.

    It may be attached to several evaluators; those that do not have the metric are passed over.

    Args:
        network: the network, wrapped by DistributedDataParallel or not; a plain state dict is written.
        path: the file to write, ``model.pt`` of the bundle.
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
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: an evaluator; the handler must come after what sets the metric.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        name = self.metric or engine.state.key_metric_name
        value = engine.state.metrics.get(name, math.nan)
        if value > self.best:  # never for NaN
            self.best = float(value)
            if self.is_main_process:
                save_atomically(state_dict_of(self.network), self.path)
                self.logger.info(f"{name} {self.best:.4f} is the best so far: wrote {self.path}")

    def state_dict(self) -> dict:
        """Return what a resumed run must know: the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping) -> None:
        self.best = state["best"]


class RandomStates:
    """
    The states of the process's random generators as an item of a checkpoint: torch (CPU and GPU), NumPy, Python.

    The state dict holds tensors and plain numbers, so that torch's weights-only loader takes it.

    Args:
        device: the device whose generator is kept as well, if it is a GPU. Defaults to ``"cpu"``.
        is_main_process: whether this process's generators are set on loading; the file holds the main process's, and
            the others keep those they were started with. Defaults to ``True``.
    """

    def __init__(self, device: torch.device | str = "cpu", is_main_process: bool = True) -> None:
        self.device = torch.device(device)
        self.is_main_process = is_main_process

    def state_dict(self) -> dict:
        name, keys, *numpy_rest = np.random.get_state()
        states = {
            "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *numpy_rest),
            "python": random.getstate(),
        }
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def load_state_dict(self, state: Mapping) -> None:
        if not self.is_main_process:
            return
        torch.set_rng_state(state["torch"].cpu())  # a loader may have put the tensors on the GPU
        name, keys, *numpy_rest = state["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *numpy_rest))
        random.setstate(state["python"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


class TrainingCheckpoint:
    """
    Ignite handler that writes everything a run needs to go on after each epoch, and reads it when resuming.

    Written are the state dicts of ``save_dict``, of the trainer itself (epoch, iteration) and of its gradient scaler
    in mixed precision. Put it last among the handlers, so that all the epoch's changes are in the file.

    Args:
        path: the file, written whole or not at all.
        save_dict: objects with ``state_dict`` and ``load_state_dict`` by name; the network's name should be
            ``model``, under which :py:func:`mednext_monai.weights.read_state_dict` finds it.
        weights_path: file for the state dict of ``save_dict["model"]`` alone, written after the last epoch.
            Defaults to ``None``: none is written.
        resume: whether to read the file at the start. Defaults to ``False``.
        interval: epochs between two writings; the last epoch is always written. Defaults to 1.
        is_main_process: whether this process writes. Defaults to ``True``.
        map_location: where tensors are put on reading. Defaults to ``"cpu"``.

    Raises:
        FileNotFoundError: when resuming and there is no such file.
    """

    def __init__(
        self,
        path: str,
        save_dict: Mapping[str, Any],
        weights_path: str | None = None,
        resume: bool = False,
        interval: int = 1,
        is_main_process: bool = True,
        map_location: str = "cpu",
    ) -> None:
        if resume and not Path(path).is_file():
            raise FileNotFoundError(f"cannot resume: {path} does not exist; --resume false starts a new run.")
        self.path = path
        self.save_dict = dict(save_dict)
        self.weights_path = weights_path
        self.resume = resume
        self.interval = interval
        self.is_main_process = is_main_process
        self.map_location = map_location
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
            save_atomically({name: state_dict_of(item) for name, item in self._items(engine).items()}, self.path)
        if last and self.weights_path is not None:
            save_atomically(state_dict_of(self.save_dict["model"]), self.weights_path)
            self.logger.info(f"wrote the weights after the last epoch: {self.weights_path}")

    def load(self, engine: Engine) -> None:
        """Read the file and put the states back; a run that had finished is an error."""
        state = torch.load(self.path, map_location=self.map_location, weights_only=True)
        items, max_epochs = self._items(engine), engine.state.max_epochs
        missing = sorted(set(items) - set(state))
        if missing:
            raise ValueError(f"cannot resume from {self.path}: it lacks {missing}; found {sorted(state)}.")
        done = state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
        if done >= max_epochs:
            raise ValueError(
                f"cannot resume from {self.path}: it has {done} epochs behind it and epochs is {max_epochs}; "
                "a larger --epochs trains on."
            )
        for name, item in items.items():
            getattr(item, "module", item).load_state_dict(state[name])
        engine.state.max_epochs = max_epochs
        self.logger.info(f"resumed from {self.path} after epoch {engine.state.epoch}")

    def _items(self, engine: Engine) -> dict[str, Any]:
        items = {**self.save_dict, "trainer": engine}
        if getattr(engine, "scaler", None) is not None:
            items["scaler"] = engine.scaler
        return items
