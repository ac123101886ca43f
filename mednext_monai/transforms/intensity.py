"""Intensity augmentation: Gaussian noise, and per channel Gaussian smoothing, lower resolution, gamma.

MONAI's corresponding transforms differ, as described for each class. Those per channel draw the parameters of a
function that can also be used alone. All are pure PyTorch, do not modify their input, and work in a
``Compose(lazy=True)``, although they are not lazy themselves.

Source: recipe of MIC-DKFZ/MedNeXt (nnU-Net v1's ``get_moreDA_augmentation``), reimplemented.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor

from .spatial import draw_about_one
from .splines import apply_along_axes, spline_matrix

__all__ = [
    "RandChannelGammad",
    "RandChannelLowResolutiond",
    "RandChannelSmoothd",
    "RandNoised",
    "adjust_gamma",
    "lower_resolution",
    "smooth",
]

TRUNCATE = 4.0  # scipy's: the Gaussian's radius in standard deviations
EDGE = 12  # voxels by which scipy repeats the edge before it computes a spline's coefficients


def smooth(channel: torch.Tensor, sigma: float) -> torch.Tensor:
    """
    Gaussian smoothing, equal to ``scipy.ndimage.gaussian_filter``: mirrored edges, cut off at four sigma.

    Args:
        channel: ``spatial``, floating point.
        sigma: standard deviation in voxels, the same for all axes.
    """
    return apply_along_axes(channel, [_gaussian_matrix(n, sigma) for n in channel.shape])


def _gaussian_matrix(size: int, sigma: float) -> torch.Tensor:
    """Return one axis of :py:func:`smooth` as a matrix ``(size, size)``, float64."""
    radius = int(TRUNCATE * sigma + 0.5)
    taps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (taps.double() / sigma) ** 2)
    index = (torch.arange(size)[:, None] + taps) % (2 * size)
    index = torch.minimum(index, 2 * size - 1 - index)  # d c b a | a b c d | d c b a
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, index, (weights / weights.sum()).expand(size, -1))


def lower_resolution(channel: torch.Tensor, zoom: float, keep_axis: int | None = None) -> torch.Tensor:
    """
    Nearest-neighbor sampling to ``round(size * zoom)`` voxels, then a cubic spline back, clipped to the former's range.

    Equal to two calls of ``skimage.transform.resize`` (order 0, then 3, mode "edge", no anti-aliasing).

    Args:
        channel: ``spatial``, floating point.
        zoom: size of the coarse grid relative to ``channel``, at most 1.
        keep_axis: axis to keep at full resolution. Defaults to ``None``.
    """
    matrices: list[torch.Tensor | None] = []
    for axis, size in enumerate(channel.shape):
        coarse = max(round(size * zoom), 1)
        if axis == keep_axis or coarse == size:
            matrices.append(None)
            continue
        positions = (torch.arange(coarse, dtype=torch.float64) + 0.5) * (size / coarse) - 0.5
        channel = channel.index_select(axis, (positions + 0.5).floor().long().clamp_(0, size - 1))
        matrices.append(_enlarging_matrix(coarse, size))
    low, high = torch.aminmax(channel)
    return apply_along_axes(channel, matrices).clamp(low, high)


@lru_cache(maxsize=256)
def _enlarging_matrix(coarse: int, size: int) -> torch.Tensor:
    """Return the cubic spline from ``coarse`` to ``size`` voxels, edges repeated: ``(size, coarse)``, float64."""
    positions = (torch.arange(size, dtype=torch.float64) + 0.5) * (coarse / size) - 0.5
    padded = spline_matrix(positions + EDGE, coarse + 2 * EDGE)
    index = (torch.arange(coarse + 2 * EDGE) - EDGE).clamp_(0, coarse - 1)
    return torch.zeros(size, coarse, dtype=torch.float64).index_add_(1, index, padded)


def adjust_gamma(channel: torch.Tensor, gamma: float, invert: bool = False) -> torch.Tensor:
    """
    ``((x - min) / range) ** gamma``, rescaled to the range and then to the mean and standard deviation of ``x``.

    Args:
        channel: any shape, floating point.
        gamma: exponent.
        invert: whether to apply it to ``-x`` and negate the result. Defaults to ``False``.
    """
    low, high = torch.aminmax(channel)
    mean, std = _mean_std(channel)
    span = high - low + 1e-7
    out = torch.sub(high, channel) if invert else torch.sub(channel, low)
    out = out.div_(span).pow_(gamma)
    new_mean, new_std = _mean_std(out)
    # rescaling to the range is affine, so it is combined with restoring mean and standard deviation
    out = out.sub_(new_mean).mul_(span * std / (new_std * span + 1e-8))
    return out.neg_().add_(mean) if invert else out.add_(mean)


def _mean_std(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and population standard deviation; ``torch.std_mean`` is ten times slower on a CPU."""
    mean = values.mean()
    return mean, (values - mean).square_().mean().sqrt_()


class RandNoised(RandomizableTransform, MapTransform):
    """
    Dictionary transform: add Gaussian noise with one standard deviation, drawn uniformly, for all channels.

    The distribution is that of MONAI's ``RandGaussianNoised``, which draws float64 at a fifth of the speed. Here it is
    float32 and comes from a generator of PyTorch with a drawn seed. All keys get the same noise.

    Args:
        keys: keys of images ``(C, *spatial)`` of one shape.
        prob: probability. Defaults to 0.1.
        std: largest standard deviation. Defaults to 0.1.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if the probability is outside [0, 1], or ``std`` is negative.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.1, std: float = 0.1, allow_missing_keys: bool = False
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be between 0 and 1, got {prob}.")
        if std < 0:
            raise ValueError(f"std must be at least 0, got {std}.")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.std = std
        self.noise: torch.Tensor | None = None

    def randomize(self, data: Sequence[int]) -> None:
        """Draw ``noise`` of shape ``data``, float32; ``None`` if not applied."""
        super().randomize(None)
        self.noise = None
        if self._do_transform:
            std = self.R.uniform(0, self.std)
            generator = torch.Generator().manual_seed(int(self.R.randint(2**32, dtype=np.int64)))
            self.noise = torch.empty(tuple(data)).normal_(0, std, generator=generator)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        self.randomize(d[first].shape)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=get_track_meta())
            if self.noise is not None:
                noise = self.noise.to(image.device)
                values = image.as_tensor() if isinstance(image, MetaTensor) else image
                image = _like(values + noise, image)
            d[key] = image
        self.noise = None
        return d


class _RandChannelTransformd(RandomizableTransform, MapTransform):
    """
    Base class of the transforms below, applied with ``prob`` per sample and then with ``channel_prob`` per channel.

    After :py:meth:`randomize`, ``parameters`` has one entry per channel, ``None`` for unchanged channels. All keys get
    the same parameters; their number of channels must be that of the first key.
    """

    def __init__(self, keys: KeysCollection, prob: float, channel_prob: float, allow_missing_keys: bool) -> None:
        for name, value in (("prob", prob), ("channel_prob", channel_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.channel_prob = channel_prob
        self.parameters: list[float | None] = []

    def draw(self) -> float:
        """Draw the parameter of one channel."""
        raise NotImplementedError

    def apply(self, channel: torch.Tensor, parameter: float) -> torch.Tensor:
        """Return the transformed channel, ``spatial``, as a new tensor."""
        raise NotImplementedError

    def randomize(self, data: int) -> None:
        """Draw for ``data`` channels."""
        super().randomize(None)
        self.parameters = [None] * data
        if self._do_transform:
            for channel in range(data):
                if self.R.uniform() < self.channel_prob:
                    self.parameters[channel] = self.draw()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        self.randomize(len(d[first]))
        for key in self.key_iterator(d):
            d[key] = _per_channel(d[key], self.parameters, self.apply)
        return d


def _per_channel(
    image: Any, parameters: Sequence[float | None], operation: Callable[[torch.Tensor, float], torch.Tensor]
) -> torch.Tensor:
    """Apply ``operation`` to the channels of ``(C, *spatial)`` that have a parameter; return a copy with metadata."""
    image = convert_to_tensor(image, track_meta=get_track_meta())
    if all(parameter is None for parameter in parameters):
        return image
    values = image.as_tensor() if isinstance(image, MetaTensor) else image
    values = values if values.is_floating_point() else values.float()
    if len(values) != len(parameters):
        raise ValueError(f"all keys must have {len(parameters)} channels as the first one has, got {len(values)}.")
    out = torch.empty_like(values)
    for target, channel, parameter in zip(out, values, parameters):
        target.copy_(channel if parameter is None else operation(channel, parameter))
    return _like(out, image)


def _like(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return ``values`` with the metadata of ``image``, if it has any."""
    if not isinstance(image, MetaTensor):
        return values
    return MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)


class RandChannelSmoothd(_RandChannelTransformd):
    """
    Dictionary transform: Gaussian smoothing, with one sigma per channel, the same for all axes.

    Written for this package because MONAI's ``RandGaussianSmoothd`` draws one sigma per axis for all channels and pads
    the image with zeros. See :py:func:`smooth`.

    Args:
        keys: keys of images ``(C, *spatial)``.
        prob: probability per sample. Defaults to 0.2.
        channel_prob: probability per channel of a selected sample. Defaults to 0.5.
        sigma_range: smallest and largest sigma in voxels. Defaults to ``(0.5, 1.0)``.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a probability is outside [0, 1], or a sigma is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.2,
        channel_prob: float = 0.5,
        sigma_range: Sequence[float] = (0.5, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, channel_prob, allow_missing_keys)
        if not 0 < sigma_range[0] <= sigma_range[1]:
            raise ValueError(f"sigma_range must be two positive numbers, the smaller first, got {sigma_range}.")
        self.sigma_range = tuple(sigma_range)

    def draw(self) -> float:
        low, high = self.sigma_range
        return self.R.uniform(low, high)

    def apply(self, channel: torch.Tensor, parameter: float) -> torch.Tensor:
        return smooth(channel, parameter)


class RandChannelLowResolutiond(_RandChannelTransformd):
    """
    Dictionary transform: downsampling and upsampling, with one zoom per channel.

    Written for this package because MONAI's ``RandSimulateLowResolutiond`` draws one zoom for all channels, upsamples
    linearly, and by default shifts the image relative to the label. See :py:func:`lower_resolution`.

    Args:
        keys: keys of images ``(C, *spatial)``.
        prob: probability per sample. Defaults to 0.25.
        channel_prob: probability per channel of a selected sample. Defaults to 0.5.
        zoom_range: smallest and largest coarse size, relative to the image. Defaults to ``(0.5, 1.0)``.
        keep_axis: spatial axis to keep at full resolution, for thick slices. Defaults to ``None``.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a probability is outside [0, 1], or a zoom outside (0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.25,
        channel_prob: float = 0.5,
        zoom_range: Sequence[float] = (0.5, 1.0),
        keep_axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, channel_prob, allow_missing_keys)
        if not 0 < zoom_range[0] <= zoom_range[1] <= 1:
            raise ValueError(f"zoom_range must be two numbers in (0, 1], the smaller first, got {zoom_range}.")
        self.zoom_range, self.keep_axis = tuple(zoom_range), keep_axis

    def draw(self) -> float:
        low, high = self.zoom_range
        return self.R.uniform(low, high)

    def apply(self, channel: torch.Tensor, parameter: float) -> torch.Tensor:
        return lower_resolution(channel, parameter, self.keep_axis)


class RandChannelGammad(_RandChannelTransformd):
    """
    Dictionary transform: gamma correction in the range of each channel, preserving its mean and standard deviation.

    Written for this package because MONAI's ``RandAdjustContrastd`` uses one range, mean and gamma for all channels and
    draws gamma uniformly; here it is below and above 1 equally often. See :py:func:`adjust_gamma`.

    Args:
        keys: keys of images ``(C, *spatial)``.
        prob: probability per sample. Defaults to 0.3.
        gamma_range: smallest and largest exponent. Defaults to ``(0.7, 1.5)``.
        invert: whether to apply it to the inverted image. Defaults to ``False``.
        channel_prob: probability per channel of a selected sample. Defaults to 1.
        allow_missing_keys: see :py:class:`monai.transforms.MapTransform`.

    Raises:
        ValueError: if a probability is outside [0, 1], or a gamma is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.3,
        gamma_range: Sequence[float] = (0.7, 1.5),
        invert: bool = False,
        channel_prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, prob, channel_prob, allow_missing_keys)
        if not 0 < gamma_range[0] <= gamma_range[1]:
            raise ValueError(f"gamma_range must be two positive numbers, the smaller first, got {gamma_range}.")
        self.gamma_range, self.invert = tuple(gamma_range), invert

    def draw(self) -> float:
        return draw_about_one(self.R, *self.gamma_range)

    def apply(self, channel: torch.Tensor, parameter: float) -> torch.Tensor:
        return adjust_gamma(channel, parameter, self.invert)
