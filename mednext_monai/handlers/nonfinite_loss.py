"""Stopping a training whose loss is NaN or infinite before the weights are affected, and saving the cause."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from monai.engines.utils import IterationEvents
from monai.networks.utils import get_state_dict
from monai.utils import CommonKeys, convert_to_tensor

from ..weights import write_checkpoint
from .case_names import case_names

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["NonFiniteLoss"]

HINT = "Try a smaller --learning_rate or --amp False, and check these cases; last.pt is unchanged."


class NonFiniteLoss:
    """
    Ignite handler that ends a training whose loss is NaN or infinite, before the optimizer step.

    It writes a file with the state before that step: the state dicts of ``save_dict`` and of the gradient scaler,
    ``epoch`` and ``iteration`` (both count from 1), the loss, and the batch: ``cases``, ``image``, ``label``. The
    checkpoint to resume from is not changed. ignite's ``TerminateOnNan`` checks after the step, does not name the
    cases, and lets the run end as if it had succeeded.

    Infinite gradients alone are accepted: they are common in mixed precision, and the scaler skips the step. The loss
    is checked after the backward pass, while the weights are still unchanged; reading it waits for the GPU, which the
    scaler does next anyway. From then on it is on the CPU in the engine's output, so that no other handler waits for
    the GPU again and the next batch is prepared during the optimizer step. Attach the handler before handlers that
    change gradients.

    In a distributed training all processes stop if the loss of one is not finite; that one writes the file.

    Args:
        path: the file to write.
        save_dict: objects with ``state_dict`` by name.

    Raises:
        FloatingPointError: during the training, with the epoch, the iteration and the cases of the batch.
    """

    def __init__(self, path: str, save_dict: Mapping[str, Any]) -> None:
        self.path = path
        self.save_dict = dict(save_dict)
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        on_cpu = engine.state.output[CommonKeys.LOSS].detach().cpu()
        engine.state.output[CommonKeys.LOSS] = on_cpu
        loss = on_cpu.item()
        here = not math.isfinite(loss)
        several = idist.get_world_size() > 1
        if not (idist.all_reduce(int(here), "MAX") if several else here):
            return
        message = self._report(engine, loss) if here else "the loss of another process is not finite; see its message."
        if several:
            idist.barrier()  # the launcher ends all processes with the first one: wait until the file is complete
        raise FloatingPointError(message)

    def _report(self, engine: Engine, loss: float) -> str:
        """Write the file; return the message."""
        state, names = engine.state, case_names(engine.state.batch)
        image, label = (
            convert_to_tensor(state.output[key], track_meta=False).cpu() for key in (CommonKeys.IMAGE, CommonKeys.LABEL)
        )
        content = {name: get_state_dict(item) for name, item in self.save_dict.items()}
        if getattr(engine, "scaler", None) is not None:
            content["scaler"] = engine.scaler.state_dict()
        content.update(epoch=state.epoch, iteration=(state.iteration - 1) % state.epoch_length + 1, loss=loss)
        write_checkpoint({**content, "cases": names, "image": image, "label": label}, self.path)
        broken = [name for name, values in zip(names, image) if not torch.isfinite(values).all()]
        return (
            f"the loss is {loss} in epoch {state.epoch}, iteration {content['iteration']} of {state.epoch_length}. "
            f"Cases of this batch: {', '.join(names)}. "
            + (f"The image itself has NaN or infinite values in {', '.join(broken)}. " if broken else "")
            + f"The state before this step and the batch are in {self.path}. {HINT}"
        )
