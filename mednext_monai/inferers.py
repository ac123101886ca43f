"""Sliding-window inference as published: windows, weights, and class probabilities averaged over mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain, combinations, product
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from tqdm import tqdm

from .options import parse_switch

__all__ = ["MedNeXtInferer"]

WINDOWS = ("published", "monai")
MONAI_ONLY = {  # arguments and their defaults
    "cache_roi_weight_map": False,
    "cpu_thresh": None,
    "buffer_steps": None,
    "buffer_dim": -1,
    "with_coord": False,
}
ROUNDING = 1e-9  # tolerance in the number of windows: an overlap such as 0.9 must not add one


class MedNeXtInferer(SlidingWindowInferer):
    """
    Sliding-window inferer that averages softmax probabilities, optionally over all mirror images of each window.

    MONAI's ``SlidingWindowInferer`` averages the output of the network, which is logits, and its
    ``TestTimeAugmentation`` is random. The published inference averages the probabilities of all ``2**spatial_dims``
    mirror images of each window.

    MONAI also uses a fixed step, so that the last window overlaps more than the others, and clamps Gaussian weights to
    at least 0.001. The published windows have the same number but are evenly spaced from border to border. Their
    weights are a Gaussian around voxel ``size // 2`` of the window with a maximum of 1, truncated at four standard
    deviations; zeros are replaced by the smallest positive weight. (For a window of 128 voxels and the default sigma,
    weights range from 4e-11 to 1.)

    Maps ``(B, C, *spatial)`` to probabilities ``(B, classes, *spatial)`` that sum to 1, of the same type as the input.
    An image smaller than the window is padded on both sides, with an odd voxel at the end. Published windows with
    constant and equal channels, such as empty background, are evaluated only once, so the network must be
    deterministic.

    Args:
        roi_size: window size in voxels, one number for all axes or one per axis; values that are not positive select
            the image size.
        sw_batch_size: number of windows per batch. Defaults to 1.
        overlap: overlap of neighboring windows, as a fraction of the window, at least 0 and below 1; the published
            windows overlap by at least that. Defaults to 0.5.
        mode: ``"gaussian"`` or ``"constant"`` weights. Defaults to ``"gaussian"``.
        mirror: whether to average over mirror images, which takes 8 times as long in 3D, 4 times in 2D. Defaults to
            ``False``.
        windows: ``"published"``, or ``"monai"`` for the positions and weights of MONAI's class. Defaults to
            ``"published"``.
        kwargs: other arguments of :py:class:`monai.inferers.SlidingWindowInferer`: ``sigma_scale``,
            ``padding_mode``, ``cval``, ``sw_device``, ``device`` and ``progress``; ``cache_roi_weight_map``,
            ``cpu_thresh``, ``buffer_steps``, ``buffer_dim`` and ``with_coord`` only with ``windows="monai"``.

    Raises:
        ValueError: if ``windows`` or ``overlap`` is invalid, or an argument is not supported with the published
            windows.

    Source: Isensee et al., nnU-Net, Nature Methods 2021, whose inference MedNeXt uses.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.5,
        mode: BlendMode | str = "gaussian",
        mirror: bool = False,
        windows: str = "published",
        **kwargs: Any,
    ) -> None:
        if windows not in WINDOWS:
            raise ValueError(f"windows must be one of {WINDOWS}, got {windows!r}.")
        given = sorted(name for name, default in MONAI_ONLY.items() if kwargs.get(name, default) != default)
        if windows == "published" and given:
            raise ValueError(f"{', '.join(given)}: only supported with windows='monai'.")
        shares = overlap if isinstance(overlap, Sequence) else [overlap]
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
        super().__init__(roi_size, sw_batch_size, overlap, mode, **kwargs)
        self.mirror = parse_switch("mirror", mirror)
        self.windows = windows

    def __call__(  # type: ignore[override]  # of the networks that MONAI allows, those that return a tensor
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Return the class probabilities of ``inputs``; for a ``MetaTensor`` as ``MetaTensor``.

        Args:
            inputs: images, ``(B, C, *spatial)``.
            network: maps windows ``(N, C, *roi_size)`` to logits ``(N, classes, *roi_size)``.
            args, kwargs: passed to ``network``.

        Raises:
            ValueError: if the number of axes of ``roi_size`` and ``inputs`` or the sizes of logits and window differ.
        """

        def probabilities(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            total = torch.softmax(network(window, *args, **kwargs).float(), dim=1)
            axes = tuple(range(2, window.dim())) if self.mirror else ()
            flips = list(chain.from_iterable(combinations(axes, n) for n in range(1, len(axes) + 1)))
            for flip in flips:
                total = total + torch.softmax(network(window.flip(flip), *args, **kwargs).float(), dim=1).flip(flip)
            return total / (len(flips) + 1) if flips else total

        if self.windows == "monai":
            return super().__call__(inputs, probabilities, *args, **kwargs)  # type: ignore[return-value]  # a tensor
        return self._average(inputs, lambda window: probabilities(window, *args, **kwargs))

    def _average(self, inputs: torch.Tensor, predict: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        dims = images.dim() - 2
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != dims:
            raise ValueError(
                f"roi_size must have one number for each of the {dims} spatial axes of inputs {tuple(images.shape)}, "
                f"got {tuple(self.roi_size)}."
            )
        window = fall_back_tuple(self.roi_size, images.shape[2:])
        missing = [max(length - size, 0) for length, size in zip(window, images.shape[2:])]
        before = [count // 2 for count in missing]
        if any(missing):
            pad = [side for low, count in zip(before[::-1], missing[::-1]) for side in (low, count - low)]
            value = {"value": self.cval} if self.padding_mode == "constant" else {}
            padded = F.pad(images, pad, mode=str(self.padding_mode), **value)
        else:
            padded = images
        source, target = self.sw_device or images.device, self.device or images.device
        weights = self._weights(window).to(target)
        weight_sum = torch.zeros(padded.shape[2:], dtype=torch.float32, device=target)
        places = self._places(padded.shape[2:], window)
        for place in places:
            weight_sum[place] += weights
        windows = _equal_windows(padded, places)
        batches = range(0, len(windows), self.sw_batch_size)
        for start in tqdm(batches) if self.progress else batches:
            part = windows[start : start + self.sw_batch_size]
            values = predict(torch.stack([padded[where[0]] for where in part]).to(source)).to(target)
            if values.shape[2:] != window:
                raise ValueError(f"The network made {tuple(values.shape[2:])} voxels of a window of {window}.")
            if start == 0:
                total = values.new_zeros((len(padded), values.shape[1], *padded.shape[2:]))
            for where, value in zip(part, values):
                weighted = value * weights
                for index in where:
                    total[index] += weighted
        total /= weight_sum
        inside = (slice(low, low + size) for low, size in zip(before, images.shape[2:]))
        result = total[(slice(None), slice(None), *inside)].to(images.dtype)
        if isinstance(inputs, MetaTensor):
            like = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
            return convert_to_dst_type(result, like, device=torch.device(target))[0]
        return result

    def _places(self, sizes: Sequence[int], window: Sequence[int]) -> list[tuple[slice, ...]]:
        """Return the windows that cover ``sizes``, evenly spaced from border to border."""
        axes = []
        for size, length, overlap in zip(sizes, window, ensure_tuple_rep(self.overlap, len(window))):
            count = ceil((size - length) / (length * (1 - overlap)) - ROUNDING) + 1
            step = (size - length) / max(count - 1, 1)
            axes.append([slice(round(i * step), round(i * step) + length) for i in range(count)])
        return list(product(*axes))

    def _weights(self, window: Sequence[int]) -> torch.Tensor:
        """Return the weights of the voxels of a window, with shape ``window``."""
        if self.mode == BlendMode.CONSTANT:
            return torch.ones(window, dtype=torch.float32)
        weights = torch.ones((), dtype=torch.float64)
        for length, scale in zip(window, ensure_tuple_rep(self.sigma_scale, len(window))):
            sigma = scale * length
            distance = (torch.arange(length, dtype=torch.float64) - length // 2).abs()
            axis = torch.exp(-0.5 * (distance / sigma).square())
            weights = weights.unsqueeze(-1) * torch.where(distance <= int(4 * sigma + 0.5), axis, 0.0)
        weights = weights.float()
        return weights.clamp(min=weights[weights > 0].min())


def _equal_windows(images: torch.Tensor, places: Sequence[tuple[slice, ...]]) -> list[list[tuple]]:
    """
    Return the windows of ``images``, ``(B, C, *spatial)``, as lists of indices of equal windows.

    Only windows with constant channels, such as background, are recognized as equal.
    """
    found: dict[Hashable, list[tuple]] = {}
    for number, (i, place) in enumerate(product(range(len(images)), places)):
        index = (i, slice(None), *place)
        axes = tuple(range(1, len(place) + 1))
        low, high = images[index].amin(axes), images[index].amax(axes)
        key = tuple(low.tolist()) if torch.equal(low, high) else number
        found.setdefault(key, []).append(index)
    return list(found.values())
