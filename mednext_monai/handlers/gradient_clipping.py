"""Clipping of the gradient norm between the backward pass and the optimizer step, and the norm as a curve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["GradientClipping"]


class GradientClipping:
    """
    Ignite handler that clips the total norm of all gradients, after unscaling them in mixed precision.

    MONAI's trainers fire ``IterationEvents.BACKWARD_COMPLETED`` between backward pass and optimizer step but do not
    clip. nnU-Net v1, with which MedNeXt is trained, clips at 12.

    The mean norm of an epoch, before it is clipped, is added to ``engine.state.metrics`` as ``gradient_norm``, where
    MONAI's handlers for logs, TensorBoard and MLflow find it; attach it before those. Steps with a norm that is not
    finite, which mixed precision skips, do not count.

    Args:
        parameters: the parameters whose gradients are clipped.
        optimizer: the optimizer of these parameters.
        max_norm: the maximum L2 norm. Defaults to 12.

    Raises:
        ValueError: if ``max_norm`` is not positive.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, max_norm: float = 12.0
    ) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}.")
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.max_norm = max_norm
        self._norms: list[torch.Tensor] = []  # of the steps of an epoch; read at its end, so that no step waits for it

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._norms.clear())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def __call__(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self._norms.append(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm).detach())

    def _report(self, engine: Engine) -> None:
        norms = torch.stack(self._norms) if self._norms else torch.empty(0)
        finite = norms[norms.isfinite()]
        if len(finite):
            engine.state.metrics["gradient_norm"] = finite.mean().item()
