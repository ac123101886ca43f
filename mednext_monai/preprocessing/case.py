"""One case from file grid to network input, on arrays: crop, resample, normalize (nnU-Net v2's schemes before it)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .geometry import Geometry, plan_geometry, reorient
from .nonzero import bounding_box, crop, fill_holes, mark_outside, nonzero_mask
from .normalization import CT_SCHEMES, INTENSITY_KEYS, SCHEMES, by_channel, normalize_channels, schemes_at
from .resampling import resample_image, resample_labels

__all__ = ["PreprocessedCase", "check_settings", "preprocess_case"]


class PreprocessedCase(NamedTuple):
    """A case on the grid of the network, and its relation to the grid of the file (reoriented, if so configured)."""

    image: np.ndarray  # float32 (C, X, Y, Z)
    label: np.ndarray  # int8 or int16 (X, Y, Z); -1: background outside the nonzero region
    geometry: Geometry


def preprocess_case(
    image: np.ndarray, label: np.ndarray | None, affine: np.ndarray, settings: Mapping
) -> PreprocessedCase:
    """
    Crop to the nonzero region, resample to the target spacing, and normalize, in this order, as published.

    Channels with a scheme of nnU-Net v2 (``"zscore_v2"``, ...) are normalized before they are resampled, as there.

    If the settings have an ``orientation``, the axes are reordered and flipped first, and the resulting grid replaces
    that of the file.

    Args:
        image: ``(C, X, Y, Z)``.
        label: signed integers ``(X, Y, Z)``. If ``None``, the returned label is 0 inside the nonzero region and -1
            outside.
        affine: ``(4, 4)``, voxel index to mm.
        settings: see :py:func:`check_settings`.

    Raises:
        ValueError: if the image is 0 everywhere or has infinite values, the shapes of image and label differ, or the
            settings are incomplete.
    """
    settings = check_settings(settings, channels=len(image))
    ignore_label = settings.get("ignore_label")
    if label is None:
        label = np.zeros(image.shape[1:], dtype=np.int8)
    elif label.shape != image.shape[1:]:
        raise ValueError(f"image and label must have one shape, got {image.shape[1:]} and {label.shape}.")
    if settings["orientation"] is not None:
        label = reorient(label[None], affine, settings["orientation"])[0][0]
        image, affine = reorient(image, affine, settings["orientation"])
    mask = nonzero_mask(image)
    start, stop = bounding_box(mask)
    geometry = plan_geometry(image.shape[1:], affine, start, stop, settings["spacing"])
    cropped, filled = crop(label, start, stop), fill_holes(crop(mask, start, stop))
    marked = annotated = mark_outside(cropped, filled)
    if ignore_label is not None:  # says nothing about the image: the mask is that of background in its place
        annotated = mark_outside(np.where(cropped == ignore_label, 0, cropped), filled)
    image = _normalize_early(crop(image, start, stop), settings, annotated)
    label = resample_labels(marked, geometry.resampled_shape, geometry.axis)
    inside = label >= 0
    if ignore_label is not None:
        inside = resample_labels(annotated, geometry.resampled_shape, geometry.axis) >= 0
    del mask, cropped, filled, marked, annotated  # a large scan takes memory in the next step
    image = resample_image(image, geometry.resampled_shape, geometry.axis)
    schemes = schemes_at(settings["normalization"], early=False)
    image = normalize_channels(image, schemes, settings["intensity"], inside=inside)
    return PreprocessedCase(image, label, geometry)


def _normalize_early(image: np.ndarray, settings: Mapping, marked: np.ndarray) -> np.ndarray:
    """Normalize the channels that have a scheme of nnU-Net v2; ``marked`` is -1 outside the nonzero region."""
    schemes = schemes_at(settings["normalization"], early=True)
    if set(schemes) == {"none"}:
        return image
    valid = resample_image(image, image.shape[1:])  # to its own grid: NaN becomes 0
    return normalize_channels(valid, schemes, settings["intensity"], inside=marked >= 0)


def check_settings(settings: Mapping, channels: int | None = None) -> dict:
    """
    Check the preprocessing settings and return them in a canonical form.

    Args:
        settings: dictionary with the keys ``spacing`` (mm per axis, in the axis order of the files, or of the
            orientation if set; ``None`` for an axis that is not resampled); ``normalization`` (one of ``SCHEMES`` per
            channel); ``intensity`` (required for CT channels: ``mean``, ``sd``, ``p005`` and ``p995`` of the data set,
            as a list with one entry per channel or a dictionary by channel index, which may be a string as in JSON);
            and optionally ``orientation`` (axis codes such as ``"RAS"``; ``None`` keeps the axes of the files, as
            published), ``ignore_label`` (value of voxels without annotation; ``None`` if there are none) and
            ``slice_axis`` (stored cases are read slice by slice across this axis; ``None`` if they are not). Other
            keys are ignored.
        channels: number of image channels, if known. Defaults to ``None``.

    Returns:
        a dictionary of the first four keys, with numbers as float and channel indices as int, and of the ignore label
        and the slice axis, if there are any.

    Raises:
        ValueError: if a setting is missing or invalid. The message names it.
    """
    spacing = settings.get("spacing")
    if (
        not isinstance(spacing, Sequence)
        or len(spacing) != 3
        or not all(value is None or _is_positive(value) for value in spacing)
    ):
        raise ValueError(
            "preprocessing settings: spacing must be three positive numbers (mm), or null for an axis that keeps its "
            f"own, got {spacing!r}."
        )
    schemes = settings.get("normalization")
    if not isinstance(schemes, Sequence) or not schemes or not all(scheme in SCHEMES for scheme in schemes):
        raise ValueError(
            f"preprocessing settings: normalization must list one of {list(SCHEMES)} per channel, got {schemes!r}."
        )
    if channels is not None and len(schemes) != channels:
        raise ValueError(
            f"preprocessing settings: normalization lists {len(schemes)} channels, {list(schemes)}, but the image has "
            f"{channels}."
        )
    orientation = settings.get("orientation")
    if orientation is not None and not _is_orientation(orientation):
        raise ValueError(
            f"preprocessing settings: orientation must be axis codes such as 'RAS', or None, got {orientation!r}."
        )
    ignore_label = settings.get("ignore_label")
    if ignore_label is not None and (type(ignore_label) is not int or ignore_label < 1):
        raise ValueError(
            f"preprocessing settings: ignore_label must be a positive integer, or None, got {ignore_label!r}."
        )
    slice_axis = settings.get("slice_axis")
    if slice_axis is not None and (type(slice_axis) is not int or slice_axis not in (0, 1, 2)):
        raise ValueError(f"preprocessing settings: slice_axis must be 0, 1, 2 or None, got {slice_axis!r}.")
    given = by_channel(settings.get("intensity"))
    intensity = {}
    for channel, scheme in enumerate(schemes):
        if scheme not in CT_SCHEMES:
            continue
        values = given.get(channel, {})
        missing = [key for key in INTENSITY_KEYS if not isinstance(values.get(key), (int, float))]
        if missing:
            raise ValueError(f"preprocessing settings: intensity of channel {channel} (CT) lacks {missing}.")
        if not _is_positive(values["sd"]):
            raise ValueError(
                f"preprocessing settings: intensity of channel {channel} has sd {values['sd']}, it must be positive."
            )
        intensity[channel] = {key: float(values[key]) for key in INTENSITY_KEYS}
    return {
        "spacing": [None if value is None else float(value) for value in spacing],
        "normalization": list(schemes),
        "intensity": intensity,
        "orientation": orientation,
        **({} if ignore_label is None else {"ignore_label": ignore_label}),
        **({} if slice_axis is None else {"slice_axis": slice_axis}),
    }


def _is_orientation(codes: object) -> bool:
    """Whether the codes contain each anatomical axis once: L or R, A or P, S or I."""
    return isinstance(codes, str) and sorted("LRPAIS".find(code) // 2 for code in codes) == [0, 1, 2]


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0
