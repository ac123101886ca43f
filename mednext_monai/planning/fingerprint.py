"""Measuring a data set: shapes, spacings, the nonzero crop, intensities and classes.

Source: the fingerprint of nnU-Net v1 as MedNeXt used it. The pool of intensities is that of the original, over all
cases (no fold is held out): every 10th foreground voxel inside the nonzero crop, in (z, y, x) order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from .checks import Volume

__all__ = ["CaseFingerprint", "intensity_statistics", "measure_case", "nonzero_box"]

FOREGROUND_STRIDE = 10  # the original's: every 10th foreground voxel
PREVIEW_VOXELS = 2000  # per case and channel, for the histograms of the report


@dataclass(frozen=True)
class CaseFingerprint:
    """
    The figures of one case.

    Args:
        id: the case's id.
        shape: voxels per axis, ``(X, Y, Z)`` in the file's order.
        spacing: mm per voxel along each axis.
        orientation: the direction in which each axis grows, as in ``"RAS"``.
        cropped_shape: voxels per axis of the nonzero crop.
        class_voxels: voxels of each class in the whole volume, background first.
        foreground: every 10th foreground voxel of each channel, ``(C, n)`` float32.
        preview: voxels evenly spread over the nonzero crop, ``(C, m)`` float32.
        mean: of each channel over the nonzero crop.
        sd: population standard deviation of each channel over the nonzero crop.
    """

    id: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    cropped_shape: tuple[int, ...]
    class_voxels: np.ndarray
    foreground: np.ndarray
    preview: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    @property
    def size_reduction(self) -> float:
        """Share of the voxels that the nonzero crop keeps."""
        return float(np.prod(self.cropped_shape) / np.prod(self.shape))


def nonzero_box(image: np.ndarray) -> tuple[slice, ...]:
    """
    Return the bounding box of the voxels in which any channel of ``(C, X, Y, Z)`` is not zero.

    The original fills the mask's holes first; that changes the mask and never its bounding box, so it is left out here.

    Raises:
        ValueError: when the image is zero everywhere.
    """
    mask = (image != 0).any(0)
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hit):
            raise ValueError("the image is zero everywhere, there is no nonzero region to crop to.")
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def measure_case(case_id: str, volume: Volume, classes: int) -> CaseFingerprint:
    """Return the fingerprint of one case with ``classes`` classes, background included."""
    box = nonzero_box(volume.image)
    image, label = volume.image[(slice(None), *box)], volume.label[box]
    # transposed: voxels are counted off in the original's (z, y, x) order
    foreground = np.stack([channel.T[label.T > 0][::FOREGROUND_STRIDE] for channel in image])
    flat = image.reshape(len(image), -1)
    return CaseFingerprint(
        id=case_id,
        shape=tuple(volume.label.shape),
        spacing=tuple(float(v) for v in np.linalg.norm(volume.affine[:3, :3], axis=0)),
        orientation="".join(nib.aff2axcodes(volume.affine)),
        cropped_shape=tuple(label.shape),
        class_voxels=np.bincount(volume.label.ravel(), minlength=classes),
        foreground=foreground,
        preview=flat[:, :: max(1, flat.shape[1] // PREVIEW_VOXELS)].copy(),
        mean=flat.mean(1, dtype=np.float64),
        sd=flat.std(1, dtype=np.float64),
    )


def intensity_statistics(cases: Sequence[CaseFingerprint]) -> list[dict[str, float]]:
    """
    Return each channel's statistics over the pooled foreground voxels of all cases.

    Returns:
        for each channel ``mean``, ``sd`` (population), ``median``, ``min``, ``max``, ``p005`` and ``p995``
        (the 0.5 and 99.5 percentile), in the image's units.

    Raises:
        ValueError: when no case has any foreground.
    """
    statistics = []
    for channel in range(len(cases[0].foreground)):
        values = np.concatenate([case.foreground[channel] for case in cases]).astype(np.float64)
        if not len(values):
            raise ValueError("no case has any foreground inside its nonzero region; check the labels.")
        low, median, high = np.percentile(values, (0.5, 50, 99.5))
        statistics.append(
            {
                "mean": float(values.mean()),
                "sd": float(values.std()),
                "median": float(median),
                "min": float(values.min()),
                "max": float(values.max()),
                "p005": float(low),
                "p995": float(high),
            }
        )
    return statistics
