"""The training augmentation of the paper, in the original's order, as one MONAI transform.

Source: recipe of MIC-DKFZ/MedNeXt (nnU-Net v1's ``get_moreDA_augmentation``), reimplemented. MONAI's own transforms
are used if they are equivalent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import (
    Compose,
    MapTransform,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)
from monai.utils import convert_to_tensor

from .intensity import RandChannelGammad, RandChannelLowResolutiond, RandChannelSmoothd, RandNoised
from .patch import RandPatchd, volume_patch
from .spatial import RandMirrord, RandRotateScaled

__all__ = ["CleanOutsided", "patch_transforms", "training_augmentation"]

LONG, LONG_ROTATION = 1.5, 15.0  # of a 2D patch: length over width, and largest angle in degrees


class CleanOutsided(MapTransform):
    """
    Dictionary transform: zero the image outside the mask, then turn label -1 ("outside") into background.

    Use it after all augmentation: noise, contrast and gamma change voxels that normalization has set to zero. Written
    for this package because MONAI's ``MaskIntensityd`` masks all channels. Not lazy.

    Args:
        image_key: key of the image ``(C, *spatial)``.
        label_key: key of the label ``(1, *spatial)``, negative outside.
        mask_channels: indices of the channels that were normalized inside the mask; only these are zeroed. Defaults to
            ``()``.
        label_dtype: type of the cleaned label. Defaults to uint8, which MONAI's ``DeepSupervisionLoss`` can resize like
            float32, with a quarter of the data to transfer between processes.

    Raises:
        ValueError: if the image lacks one of ``mask_channels``, or a label does not fit ``label_dtype``.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        mask_channels: Sequence[int] = (),
        label_dtype: torch.dtype = torch.uint8,
    ) -> None:
        super().__init__((image_key, label_key))
        self.mask_channels = tuple(mask_channels)
        self.label_dtype = label_dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image_key, label_key = self.keys
        label = convert_to_tensor(d[label_key], track_meta=get_track_meta())
        if self.mask_channels:
            image = convert_to_tensor(d[image_key], track_meta=get_track_meta())
            if not 0 <= min(self.mask_channels) <= max(self.mask_channels) < len(image):
                raise ValueError(f"mask_channels must be in 0 ... {len(image) - 1}, got {self.mask_channels}.")
            outside = (label.as_tensor() if isinstance(label, MetaTensor) else label)[0] < 0
            if bool(outside.any()):
                values = image.as_tensor() if isinstance(image, MetaTensor) else image
                cleaned, zero = torch.empty_like(values), values.new_zeros(())
                for channel, (target, source) in enumerate(zip(cleaned, values)):
                    if channel in self.mask_channels:
                        torch.where(outside, zero, source, out=target)
                    else:
                        target.copy_(source)
                image = MetaTensor(cleaned, meta=image.meta) if isinstance(image, MetaTensor) else cleaned
            d[image_key] = image
        if self.label_dtype == torch.uint8 and label.dtype != torch.int8 and label.max() > 255:
            raise ValueError(f"label_dtype must not be uint8 for labels above 255, got label {label.max()}.")
        d[label_key] = label.clamp(min=0).to(self.label_dtype)
        return d


def training_augmentation(
    patch_size: int | Sequence[int],
    image_key: str = "image",
    label_key: str = "label",
    mask_channels: Sequence[int] = (),
    dummy_2d: bool = False,
    thin_axis: int = 2,
    ignore_label: int | None = None,
    slice_axis: int | None = None,
    interpolation: str = "cubic",
) -> Compose:
    """
    Return the transform from stored case to training patch: sampling and nine augmentations, in the original's order.

    The input is that of :py:class:`RandPatchd`. The output is the image as float32 ``(C, *patch_size)`` and the label
    as uint8 ``(1, *patch_size)``, without -1. The loss computes the deep-supervision targets. Patches of slices are
    rotated in their plane, by up to 180 degrees, or 15 if a patch is longer than 1.5 times its width.

    | augmentation | probability | range | per channel |
    | --- | --- | --- | --- |
    | rotation; scaling (one interpolation) | 0.2; 0.2 | 30 degrees per axis; 0.7 to 1.4 | no |
    | Gaussian noise | 0.1 | standard deviation 0 to 0.1 | no |
    | Gaussian smoothing | 0.2, then 0.5 per channel | sigma 0.5 to 1 voxel | yes |
    | brightness, a factor | 0.15 | 0.75 to 1.25 | yes |
    | contrast about the mean, clipped to the range | 0.15 | 0.75 to 1.25 | yes |
    | lower resolution | 0.25, then 0.5 per channel | zoom 0.5 to 1 | yes |
    | gamma of the inverted image | 0.1 | 0.7 to 1.5 | yes |
    | gamma | 0.3 | 0.7 to 1.5 | yes |
    | mirroring | 0.5 per axis | | no |

    Args:
        patch_size: patch size in voxels, one number or three, in 2D two.
        image_key: key of the image. Defaults to "image".
        label_key: key of the label. Defaults to "label".
        mask_channels: channels that were normalized inside the nonzero mask. Defaults to ``()``.
        dummy_2d: rotate (up to 180 degrees), scale and lower the resolution only in the plane of thick slices. Defaults
            to ``False``.
        thin_axis: axis across the slices. Defaults to 2, the last, which is the original's first.
        ignore_label: label of voxels without annotation, see :py:class:`RandPatchd`; in rotation and scaling it is a
            label like any other. Defaults to ``None``.
        slice_axis: axis across the slices, for patches in 2D, see :py:class:`RandPatchd`; ``dummy_2d`` is then not
            used. Defaults to ``None``: patches are 3D.
        interpolation: of rotated and scaled images, see :py:class:`RandRotateScaled`. Defaults to "cubic".
    """
    keys = (image_key, label_key)
    size = volume_patch(patch_size, slice_axis)
    in_plane = [length for axis, length in enumerate(size) if axis != slice_axis]
    is_long = slice_axis is not None and max(in_plane) > LONG * min(in_plane)
    return Compose(
        [
            RandPatchd(
                keys,
                patch_size,
                mode=("image", "label"),
                augmentation=RandRotateScaled(
                    keys,
                    size,
                    mode=("image", "label"),
                    rotate_prob=0.2,
                    scale_prob=0.2,
                    rotate_range=30,
                    scale_range=(0.7, 1.4),
                    dummy_2d=dummy_2d or slice_axis is not None,
                    thin_axis=thin_axis if slice_axis is None else slice_axis,
                    in_plane_range=LONG_ROTATION if is_long else 180,
                    interpolation=interpolation,
                ),
                ignore_label=ignore_label,
                slice_axis=slice_axis,
            ),
            RandNoised(image_key, prob=0.1, std=0.1),
            RandChannelSmoothd(image_key, prob=0.2, channel_prob=0.5, sigma_range=(0.5, 1.0)),
            RandScaleIntensityd(image_key, factors=0.25, prob=0.15, channel_wise=True),
            RandScaleIntensityFixedMeand(
                image_key, factors=0.25, prob=0.15, fixed_mean=True, preserve_range=True, channel_wise=True
            ),
            RandChannelLowResolutiond(
                image_key,
                prob=0.25,
                channel_prob=0.5,
                zoom_range=(0.5, 1.0),
                keep_axis=thin_axis if dummy_2d and slice_axis is None else None,
            ),
            RandChannelGammad(image_key, prob=0.1, gamma_range=(0.7, 1.5), invert=True),
            RandChannelGammad(image_key, prob=0.3, gamma_range=(0.7, 1.5), invert=False),
            RandMirrord(keys, prob=0.5, axes=range(len(in_plane))),
            CleanOutsided(image_key, label_key, mask_channels),
        ]
    )


def patch_transforms(
    patch_size: int | Sequence[int],
    image_key: str = "image",
    label_key: str = "label",
    mask_channels: Sequence[int] = (),
    ignore_label: int | None = None,
    slice_axis: int | None = None,
) -> Compose:
    """
    Return the transform from stored case to validation patch: sampling as in training, without augmentation.

    For the original's fast validation on patches. Arguments and output as in :py:func:`training_augmentation`.
    """
    return Compose(
        [
            RandPatchd(
                (image_key, label_key),
                patch_size,
                mode=("image", "label"),
                ignore_label=ignore_label,
                slice_axis=slice_axis,
            ),
            CleanOutsided(image_key, label_key, mask_channels),
        ]
    )
