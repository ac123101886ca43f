"""Sliding-window inference as published: windows, weights, and class probabilities averaged over mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, combinations, product
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from tqdm import tqdm

from ..options import parse_switch
from .autocast import AutocastInferer

__all__ = ["MedNeXtInferer"]

WINDOWS = ("published", "monai")
ACCUMULATE = {"float32": torch.float32, "half": torch.float16}
MONAI_ONLY = {  # arguments and their defaults
    "cache_roi_weight_map": False,
    "cpu_thresh": None,
    "buffer_steps": None,
    "buffer_dim": -1,
    "with_coord": False,
}
CONSTANTS = 2  # different constant windows, such as background, whose probabilities are kept
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
        accumulate: ``"float32"``, or ``"half"`` for half the memory with published windows: running means in float16,
            each window adding an error of at most ``2**-12`` to a probability. Defaults to ``"float32"``.
        slice_axis: for a 2D network and 3D images, the axis across the slices, 0, 1 or 2: a window is a part of one
            slice, ``roi_size`` has two numbers, and a batch may hold windows of several slices. Defaults to ``None``:
            the network has the axes of the images.
        cpu_amp: as for :py:class:`AutocastInferer`. Defaults to ``False``.
        kwargs: other arguments of :py:class:`monai.inferers.SlidingWindowInferer`: ``sigma_scale``,
            ``padding_mode``, ``cval``, ``sw_device``, ``device`` and ``progress``; ``cache_roi_weight_map``,
            ``cpu_thresh``, ``buffer_steps``, ``buffer_dim`` and ``with_coord`` only with ``windows="monai"``.

    Raises:
        ValueError: if ``windows``, ``overlap``, ``accumulate`` or ``slice_axis`` is invalid, or an argument is not
            supported with the published windows.

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
        accumulate: str = "float32",
        slice_axis: int | None = None,
        cpu_amp: bool = False,
        **kwargs: Any,
    ) -> None:
        if windows not in WINDOWS:
            raise ValueError(f"windows must be one of {WINDOWS}, got {windows!r}.")
        if accumulate not in ACCUMULATE:
            raise ValueError(f"accumulate must be one of {tuple(ACCUMULATE)}, got {accumulate!r}.")
        if windows == "monai" and accumulate != "float32":
            raise ValueError("accumulate: only supported with windows='published'.")
        if slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, or None, got {slice_axis!r}.")
        if windows == "monai" and slice_axis is not None:
            raise ValueError("slice_axis: only supported with windows='published'.")
        given = sorted(name for name, default in MONAI_ONLY.items() if kwargs.get(name, default) != default)
        if windows == "published" and given:
            raise ValueError(f"{', '.join(given)}: only supported with windows='monai'.")
        shares = overlap if isinstance(overlap, Sequence) else [overlap]
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
        super().__init__(roi_size, sw_batch_size, overlap, mode, **kwargs)
        self.mirror = parse_switch("mirror", mirror)
        self.windows = windows
        self.accumulate = accumulate
        self.slice_axis = slice_axis
        self._patch_inferer = AutocastInferer(cpu_amp)
        self.cpu_amp = self._patch_inferer.cpu_amp  # a setting that the results name

    def __call__(  # type: ignore[override]  # of the networks that MONAI allows, those that return a tensor
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Return the class probabilities of ``inputs``; for a ``MetaTensor`` as ``MetaTensor``.

        Args:
            inputs: images, ``(B, C, *spatial)``.
            network: maps windows ``(N, C, *roi_size)`` to logits ``(N, classes, *roi_size)``; with a ``slice_axis``,
                windows of slices, which have one spatial axis less than the images.
            args, kwargs: passed to ``network``.

        Raises:
            ValueError: if the number of axes of ``roi_size`` and ``inputs`` or the sizes of logits and window differ.
        """

        def probabilities(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self._probabilities(network, window, *args, **kwargs)

        if self.windows == "monai":
            return super().__call__(inputs, probabilities, *args, **kwargs)  # type: ignore[return-value]  # a tensor
        axis = self.slab_axis(inputs.shape[2:])
        (total,) = self._slabs(inputs, lambda window: probabilities(window, *args, **kwargs), axis, whole=True)
        result = total.to(inputs.dtype)
        if isinstance(inputs, MetaTensor):
            like = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
            return convert_to_dst_type(result, like, device=result.device)[0]
        return result

    def slabs(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        along: int | None = None,
        **kwargs: Any,
    ) -> Iterator[torch.Tensor]:
        """
        Yield the class probabilities of an image slab by slab, each as soon as no further window covers it.

        Only the planes of one row of windows are held, so the memory does not grow with the extent of the image along
        the axis of the slabs. For the axis that ``__call__`` uses, the values are equal: the same sums in the same
        order.

        Args:
            inputs: one image, ``(1, C, *spatial)``.
            network: as for ``__call__``.
            args, kwargs: passed to ``network``.
            along: axis of the slabs. Defaults to ``None``: that of :py:meth:`slab_axis`.

        Yields:
            probabilities ``(classes, ...)`` of consecutive planes. The next slab may overwrite them.

        Raises:
            ValueError: if there are several images, or for ``windows="monai"``; others as for ``__call__``.
        """
        if len(inputs) != 1 or self.windows == "monai":
            raise ValueError(f"slabs need one image and windows='published', got {len(inputs)} and {self.windows!r}.")
        axis = self.slab_axis(inputs.shape[2:]) if along is None else along
        for slab in self._slabs(
            inputs, lambda window: self._probabilities(network, window, *args, **kwargs), axis, whole=False
        ):
            yield slab[0]

    def slab_axis(self, shape: Sequence[int], among: Sequence[int] | None = None) -> int:
        """
        Return the axis of the slabs: that of the most windows, of equal ones the longest, of these the first.

        Args:
            shape: spatial shape of the image.
            among: axes to choose from. Defaults to ``None``: all.

        Raises:
            ValueError: if the number of axes of ``roi_size`` and ``shape`` differ.
        """
        counts = [len(places) for places in self._places(*self._padded(shape))]
        return max(among or range(len(shape)), key=lambda axis: (counts[axis], shape[axis], -axis))

    def _probabilities(
        self, network: Callable[..., torch.Tensor], window: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the class probabilities of windows, averaged over their mirror images if enabled."""
        if self.slice_axis is not None:
            window = window.squeeze(2 + self.slice_axis)

        def softmax(window: torch.Tensor) -> torch.Tensor:
            logits = self._patch_inferer(window, network, *args, **kwargs)
            return torch.softmax(logits.float(), dim=1)

        total = softmax(window)
        axes = tuple(range(2, window.dim())) if self.mirror else ()
        flips = list(chain.from_iterable(combinations(axes, n) for n in range(1, len(axes) + 1)))
        for flip in flips:
            total = total + softmax(window.flip(flip)).flip(flip)
        total = total / (len(flips) + 1) if flips else total
        return total if self.slice_axis is None else total.unsqueeze(2 + self.slice_axis)

    def _padded(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape to which an image is padded, and the window, with one voxel along the slice axis."""
        axes = [axis for axis in range(len(shape)) if axis != self.slice_axis]
        of_slices = "" if self.slice_axis is None else f" but the slice axis, {self.slice_axis},"
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != len(axes):
            raise ValueError(
                f"roi_size must have one number for each of the {len(shape)} spatial axes{of_slices} of inputs "
                f"{tuple(shape)}, got {tuple(self.roi_size)}."
            )
        sizes = dict(zip(axes, fall_back_tuple(self.roi_size, [shape[axis] for axis in axes])))
        window = tuple(sizes.get(axis, 1) for axis in range(len(shape)))
        return tuple(map(max, shape, window)), window

    def _pad(self, images: torch.Tensor, sizes: Sequence[int], before: Sequence[int]) -> torch.Tensor:
        missing = [size - length for size, length in zip(sizes, images.shape[2:])]
        if not any(missing):
            return images
        pad = [side for low, count in zip(before[::-1], missing[::-1]) for side in (low, count - low)]
        value = {"value": self.cval} if self.padding_mode == "constant" else {}
        return F.pad(images, pad, mode=str(self.padding_mode), **value)

    def _slabs(
        self, inputs: torch.Tensor, predict: Callable[[torch.Tensor], torch.Tensor], along: int, whole: bool
    ) -> Iterator[torch.Tensor]:
        """
        Yield the averages over windows, ``(B, classes, *spatial)``, in slabs or as a whole.

        Windows are evaluated in rows: all windows at one place along ``along``. After a row, the planes before the next
        one are finished. Slices that fit into one batch are one row.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        sizes, window = self._padded(images.shape[2:])
        before = [(size - length) // 2 for size, length in zip(sizes, images.shape[2:])]
        padded, places = self._pad(images, sizes, before), self._places(sizes, window)
        rows = self._rows(places, along)
        extent = max(row[-1].stop - row[0].start for row in rows)
        shape = [extent if axis == along and not whole else size for axis, size in enumerate(sizes)]
        weights = self._weights(window).to(self.device or images.device)
        sums = _Averages(len(images), shape, along, weights, ACCUMULATE[self.accumulate])
        background: dict[Hashable, torch.Tensor] = {}
        first = 0  # the plane at which the sums begin
        for number, row in enumerate(tqdm(rows) if self.progress else rows):
            others = [row if axis == along else places[axis] for axis in range(len(places))]
            queue = list(product(range(len(images)), product(*others)))
            keys = _keys([padded[image][(slice(None), *place)] for image, place in queue])
            for start in range(0, len(queue), self.sw_batch_size):
                batch = queue[start : start + self.sw_batch_size]
                values = self._values(padded, batch, keys[start : start + self.sw_batch_size], predict, background)
                for (image, place), value in zip(batch, values):
                    if tuple(value.shape[1:]) != window:
                        raise ValueError(f"The network made {tuple(value.shape[1:])} voxels of a window of {window}.")
                    target = list(place)
                    target[along] = slice(place[along].start - first, place[along].stop - first)
                    sums.add(image, target, value.to(weights.device))
            is_last = number + 1 == len(rows)
            finished = (sizes[along] if is_last else rows[number + 1][0].start) - first
            if whole and not is_last:
                continue
            inside = [slice(low, low + length) for low, length in zip(before, images.shape[2:])]
            part = slice(inside[along].start - first, min(inside[along].stop - first, finished))
            inside[along] = slice(max(part.start, 0), max(part.stop, 0))
            yield sums.mean(finished)[(slice(None), slice(None), *inside)]
            if not is_last:
                sums.drop(finished)
                first += finished

    def _values(
        self,
        padded: torch.Tensor,
        batch: Sequence[tuple[int, tuple[slice, ...]]],
        keys: Sequence[Hashable],
        predict: Callable[[torch.Tensor], torch.Tensor],
        background: dict[Hashable, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return the probabilities of windows, ``(classes, *window)`` each; of those with equal keys the first's."""
        windows = [padded[image][(slice(None), *place)] for image, place in batch]
        new = {key: window for key, window in zip(keys, windows) if key not in background}
        values = dict(background)
        if new:
            stacked = torch.stack(list(new.values())).to(self.sw_device or padded.device)
            values.update(zip(new, predict(stacked)))
        for key in new:
            if isinstance(key, tuple):
                background[key] = values[key]
                if len(background) > CONSTANTS:
                    del background[next(iter(background))]
        return [values[key] for key in keys]

    def _rows(self, places: Sequence[Sequence[slice]], along: int) -> list[Sequence[slice]]:
        """Return the places along the axis of the slabs, those together that are evaluated before a slab is yielded."""
        windows = prod(len(axis) for number, axis in enumerate(places) if number != along)
        count = max(self.sw_batch_size // windows, 1) if along == self.slice_axis else 1
        return [places[along][start : start + count] for start in range(0, len(places[along]), count)]

    def _places(self, sizes: Sequence[int], window: Sequence[int]) -> list[list[slice]]:
        """Return the places of the windows along each axis, evenly spaced from border to border."""
        axes = []
        shares = list(ensure_tuple_rep(self.overlap, len(window) - (self.slice_axis is not None)))
        if self.slice_axis is not None:
            shares.insert(self.slice_axis, 0)
        for size, length, overlap in zip(sizes, window, shares):
            count = ceil((size - length) / (length * (1 - overlap)) - ROUNDING) + 1
            step = (size - length) / max(count - 1, 1)
            axes.append([slice(round(i * step), round(i * step) + length) for i in range(count)])
        return axes

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


class _Averages:
    """
    Weighted averages of overlapping windows, of which only some planes along an axis are held.

    In float32 these are a sum and the sum of its weights, divided at the end; in half precision running means, which
    stay between 0 and 1, where the sums of small weights would vanish.
    """

    def __init__(
        self, images: int, shape: Sequence[int], along: int, weights: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.along = along
        self.weights = weights
        self.dtype = dtype
        self.weight_sum = torch.zeros((images, *shape), dtype=torch.float32, device=weights.device)
        self.total: torch.Tensor | None = None

    def add(self, image: int, place: Sequence[slice], value: torch.Tensor) -> None:
        if self.total is None:
            shape = (len(self.weight_sum), len(value), *self.weight_sum.shape[1:])
            self.total = torch.zeros(shape, dtype=self.dtype, device=self.weights.device)
        total, weight_sum = self.total[image][(slice(None), *place)], self.weight_sum[image][tuple(place)]
        weight_sum += self.weights
        if self.dtype == torch.float32:
            total.addcmul_(value, self.weights)
        else:
            share = self.weights / weight_sum
            for mean, new in zip(total, value):  # class by class, with little memory
                mean.copy_(torch.lerp(mean.float(), new, share))

    def mean(self, planes: int) -> torch.Tensor:
        """Return the averages of the first planes, in place; nothing may be added to them any more."""
        assert self.total is not None
        part = self.total.narrow(2 + self.along, 0, planes)
        if self.dtype == torch.float32:
            part /= self.weight_sum.narrow(1 + self.along, 0, planes).unsqueeze(1)
        return part

    def drop(self, planes: int) -> None:
        """Forget the first planes and move the others forward."""
        for tensor in (self.total, self.weight_sum):
            assert tensor is not None
            axis = tensor.dim() - (self.weight_sum.dim() - 1) + self.along
            kept = tensor.shape[axis] - planes
            for plane in range(kept):  # one by one, because source and target overlap
                tensor.select(axis, plane).copy_(tensor.select(axis, planes + plane))
            tensor.narrow(axis, kept, planes).zero_()


def _keys(windows: Sequence[torch.Tensor]) -> list[Hashable]:
    """
    Return for each window, ``(C, *spatial)``, the values of its channels if each is constant, else its number.

    Of all windows of a row at once, so that a GPU is waited for once and not between the windows.
    """
    axes = tuple(range(1, windows[0].dim()))
    low = torch.stack([window.amin(axes) for window in windows]).cpu()
    high = torch.stack([window.amax(axes) for window in windows]).cpu()
    return [tuple(a.tolist()) if torch.equal(a, b) else number for number, (a, b) in enumerate(zip(low, high))]
