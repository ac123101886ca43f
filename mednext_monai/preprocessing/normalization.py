"""Intensity normalization per channel: the schemes of nnU-Net v1, which MedNeXt uses, and those of nnU-Net v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["CT_SCHEMES", "EARLY_SCHEMES", "INTENSITY_KEYS", "SCHEMES", "by_channel", "normalize_channels", "schemes_at"]

EARLY_SCHEMES = ("CT_v2", "zscore_v2", "masked_zscore_v2")  # of nnU-Net v2, before resampling; the others: after it
SCHEMES = ("CT", "masked_CT", "zscore", "masked_zscore", "none", *EARLY_SCHEMES)
CT_SCHEMES = ("CT", "masked_CT", "CT_v2")  # those that need the intensities of the data set
INTENSITY_KEYS = ("mean", "sd", "p005", "p995")  # of the foreground of the whole data set, for CT
EPSILON = 1e-8


def normalize_channels(
    image: np.ndarray,
    schemes: Sequence[str],
    intensity: Mapping[int, Mapping[str, float]] | None = None,
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """
    Normalize each channel by its scheme.

    - ``"CT"``: clip to the 0.5 and 99.5 percentiles of the data set, subtract its mean, divide by its standard
      deviation.
    - ``"masked_CT"``: the same; voxels outside the mask become 0.
    - ``"zscore"``: subtract the mean of the channel, divide by its (population) standard deviation plus 1e-8.
    - ``"masked_zscore"``: z-score with the statistics of the voxels inside the mask; voxels outside become 0.
    - ``"none"``: unchanged.
    - ``"CT_v2"``, ``"zscore_v2"``, ``"masked_zscore_v2"``: those of nnU-Net v2, meant for images before resampling; in
      the last one, voxels outside the mask are unchanged, which are 0 there.

    Args:
        image: ``(C, X, Y, Z)``.
        schemes: one of ``SCHEMES`` per channel.
        intensity: ``mean``, ``sd``, ``p005`` and ``p995`` of each CT channel, by channel index. Defaults to
            ``None``.
        inside: boolean ``(X, Y, Z)``, required by the masked schemes: the mask, resampled as the image. (The nonzero
            voxels of a resampled image are not the same, because cubic interpolation overshoots into the background.)
            Defaults to ``None``.

    Returns:
        float32 ``(C, X, Y, Z)``, a new array.

    Raises:
        ValueError: if a scheme is unknown, the numbers of schemes and channels differ, or the intensities or mask that
            a scheme needs are missing.
    """
    if len(schemes) != len(image):
        raise ValueError(f"normalization must have one scheme per channel: {len(image)} channels, got {list(schemes)}.")
    result = np.array(image, dtype=np.float32, order="C")
    for channel, scheme in enumerate(schemes):
        values = result[channel]
        if scheme in CT_SCHEMES:
            _normalize_ct(values, channel, intensity)
            if scheme == "masked_CT":
                values[~_checked_mask(inside, values.shape)] = 0
        elif scheme in ("zscore", "zscore_v2"):
            _standardize(values, values)
        elif scheme == "masked_zscore":
            mask = _checked_mask(inside, values.shape)
            _standardize(values, values[mask])
            values[~mask] = 0
        elif scheme == "masked_zscore_v2":
            mask = _checked_mask(inside, values.shape)
            standardized = values[mask]
            _standardize(standardized, standardized)
            values[mask] = standardized
        elif scheme != "none":
            raise ValueError(f"normalization must be one of {list(SCHEMES)}, got {scheme!r}.")
    return result


def schemes_at(schemes: Sequence[str], early: bool) -> list[str]:
    """Return the schemes of the channels normalized before (``early``) or after resampling, ``"none"`` for others."""
    return [scheme if (scheme in EARLY_SCHEMES) == early else "none" for scheme in schemes]


def by_channel(intensity: Mapping | Sequence | None) -> dict[int, Mapping[str, float]]:
    """Return statistics by channel index, from a list or a dictionary whose keys may be strings, as in JSON."""
    items = intensity.items() if isinstance(intensity, Mapping) else enumerate(intensity or ())
    return {int(channel): values for channel, values in items}


def _normalize_ct(values: np.ndarray, channel: int, intensity: Mapping[int, Mapping[str, float]] | None) -> None:
    statistics = (intensity or {}).get(channel, {})
    missing = [key for key in INTENSITY_KEYS if key not in statistics]
    if missing:
        raise ValueError(f"normalization 'CT' of channel {channel} needs the intensity's {missing}.")
    np.clip(values, statistics["p005"], statistics["p995"], out=values)
    values -= statistics["mean"]
    values /= statistics["sd"]


def _standardize(values: np.ndarray, sample: np.ndarray) -> None:
    """Subtract the mean of ``sample`` and divide by its standard deviation in place; sums are in float64."""
    mean = sample.mean(dtype=np.float64)
    sd = sample.std(dtype=np.float64)
    values -= np.float32(mean)
    values /= np.float32(sd + EPSILON)


def _checked_mask(inside: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if inside is None:
        raise ValueError("normalization 'masked_zscore' needs the mask of the nonzero region.")
    if inside.shape != shape or inside.dtype != bool:
        raise ValueError(f"the mask must be boolean {shape}, got {inside.dtype} {inside.shape}.")
    if not inside.any():
        raise ValueError("normalization 'masked_zscore' needs a mask that is not empty.")
    return inside
