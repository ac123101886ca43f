"""A network as it is applied to a patch, in bfloat16 on a CPU where that is wanted and faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

from ..networks import bfloat16_pays
from ..options import parse_switch

__all__ = ["AutocastInferer"]


class AutocastInferer(SimpleInferer):
    """
    MONAI's ``SimpleInferer`` with mixed precision on a CPU, which the engines of MONAI (1.6.1) only have for a GPU.

    What the network returns is float32, so that the loss is computed in it.

    Args:
        cpu_amp: whether the network runs under autocast with bfloat16 for volumes on a CPU where that was measured to
            be faster (:py:func:`mednext_monai.networks.bfloat16_pays`); for images, ``(B, C, H, W)``, it is not.
            Defaults to ``False``.

    Raises:
        ValueError: if ``cpu_amp`` is not a switch.
    """

    def __init__(self, cpu_amp: bool | int | str = False) -> None:
        super().__init__()
        self.cpu_amp = parse_switch("cpu_amp", cpu_amp)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Return what ``network`` makes of ``inputs``, ``(B, C, *spatial)``: a tensor, or a tuple with deep supervision.

        Args:
            inputs: images.
            network: is called with them.
            args, kwargs: passed to ``network``.
        """
        if not (self.cpu_amp and inputs.device.type == "cpu" and inputs.dim() == 5 and bfloat16_pays()):
            return network(inputs, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(inputs, *args, **kwargs)
        return tuple(part.float() for part in out) if isinstance(out, (tuple, list)) else out.float()  # type: ignore[return-value]
