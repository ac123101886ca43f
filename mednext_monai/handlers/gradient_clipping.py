"""Clipping of the gradient's norm between the backward pass and the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from monai.engines.utils import IterationEvents

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["GradientClipping"]


class GradientClipping:
    """
    Ignite handler that clips the norm of all gradients together, after undoing the scaling of mixed precision.

    MONAI's trainers fire ``IterationEvents.BACKWARD_COMPLETED`` between backward pass and step but have no clipping
    of their own. nnU-Net v1, whose training MedNeXt uses, clips at 12.

    Args:
        parameters: the parameters whose gradients are clipped.
        optimizer: the optimiser that holds them.
        max_norm: the L2 norm to clip to. Defaults to 12.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, max_norm: float = 12.0
    ) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}.")
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
