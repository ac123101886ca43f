"""Dice and cross-entropy of the voxels that are annotated."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.losses import DiceLoss
from monai.networks import one_hot
from torch.nn.functional import cross_entropy

__all__ = ["DiceCELoss"]


class DiceCELoss(MonaiDiceCELoss):
    """
    MONAI's ``DiceCELoss`` without the voxels that have the ignore label.

    Both terms are those of the annotated voxels alone: the Dice term sums only over them, and cross-entropy is their
    mean. If there are none, the loss and its gradients are 0. Without an ignore label this is MONAI's loss, unchanged.

    Written for this package because MONAI's ``DiceCELoss`` has no ignore label, and because its ``MaskedLoss`` masks
    the logits, so that softmax sees zeros where the mask is. The Dice formula is that of MONAI's ``DiceLoss``.

    ``forward`` takes logits ``(B, C, *spatial)`` and class indices ``(B, 1, *spatial)``, and returns a scalar. With
    :py:class:`monai.losses.DeepSupervisionLoss`, which resizes labels by nearest neighbor, the ignore label is kept at
    all resolutions.

    Args:
        ignore_label: value of the voxels without annotation; not a class, so negative or at least ``C``. Defaults to
            ``None``.
        arguments: those of :py:class:`monai.losses.DiceCELoss`. With an ignore label, ``softmax`` and ``to_onehot_y``
            must be true, and there can be no ``weight``, ``jaccard``, ``sigmoid``, ``other_act`` or other
            ``reduction`` than the mean.

    Raises:
        ValueError: if the ignore label is used with arguments that do not allow it.

    Source: nnU-Net v2 (``DC_and_CE_loss`` with ``ignore_label``), reimplemented; Dice and cross-entropy as published.
    """

    def __init__(self, ignore_label: int | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ignore_label = ignore_label
        if ignore_label is None:
            return
        if not (arguments.get("softmax") and arguments.get("to_onehot_y")):
            raise ValueError("with an ignore_label, softmax and to_onehot_y must be true.")
        others = ("weight", "jaccard", "sigmoid", "other_act")
        refused = [name for name in others if arguments.get(name)]
        refused += ["reduction"] * (arguments.get("reduction", "mean") != "mean")
        if refused:
            raise ValueError(f"with an ignore_label, {', '.join(refused)} cannot be set.")
        known = ("include_background", "squared_pred", "smooth_nr", "smooth_dr", "batch")
        self.dice = DiceLoss(**{name: arguments[name] for name in known if name in arguments})  # of probabilities

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.ignore_label is None:
            return super().forward(input, target)
        classes = input.shape[1]
        if target.shape != (len(input), 1, *input.shape[2:]):
            raise ValueError(
                f"expected logits (B, C, *spatial) and class indices (B, 1, *spatial), got {tuple(input.shape)} and "
                f"{tuple(target.shape)}."
            )
        if 0 <= self.ignore_label < classes:
            raise ValueError(f"ignore_label must not be one of the {classes} classes, got {self.ignore_label}.")
        annotated = target != self.ignore_label
        label = torch.where(annotated, target, torch.zeros_like(target))
        dice = self.dice(input.softmax(1) * annotated, one_hot(label, num_classes=classes) * annotated)
        smoothing = self.cross_entropy.label_smoothing
        total = cross_entropy(
            input, target[:, 0].long(), ignore_index=self.ignore_label, reduction="sum", label_smoothing=smoothing
        )
        result: torch.Tensor = self.lambda_dice * dice + self.lambda_ce * total / annotated.sum().clamp(min=1)
        return result
