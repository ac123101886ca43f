"""Sliding-window inference as published: class probabilities are averaged, over windows and mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer

__all__ = ["MedNeXtInferer"]


class MedNeXtInferer(SlidingWindowInferer):
    """
    Sliding window that averages softmax probabilities and can average over all mirror images of each window.

    MONAI's ``SlidingWindowInferer`` averages whatever the network returns, that is logits, and its
    ``TestTimeAugmentation`` draws at random; the published inference averages the probabilities of all
    ``2**spatial_dims`` mirror images of each window.

    Maps ``(B, C, *spatial)`` to probabilities ``(B, classes, *spatial)`` that add up to 1.

    Args:
        mirror: whether to average over mirror images; the time grows 8-fold in 3D, 4-fold in 2D. Defaults to
            ``False``.
        args, kwargs: those of :py:class:`monai.inferers.SlidingWindowInferer`, with the published defaults
            ``overlap=0.5, mode="gaussian", sigma_scale=0.125``.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        mode: str = "gaussian",
        mirror: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, sw_batch_size, overlap, mode, **kwargs)
        self.mirror = mirror

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        def probabilities(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            total = torch.softmax(network(window, *args, **kwargs).float(), dim=1)
            axes = tuple(range(2, window.dim())) if self.mirror else ()
            flips = list(chain.from_iterable(combinations(axes, n) for n in range(1, len(axes) + 1)))
            for flip in flips:
                total = total + torch.softmax(network(window.flip(flip), *args, **kwargs).float(), dim=1).flip(flip)
            return total / (len(flips) + 1) if flips else total

        return super().__call__(inputs, probabilities, *args, **kwargs)
