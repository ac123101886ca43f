"""Losses that MONAI lacks."""

from .dice_ce import DiceCELoss

__all__ = ["DiceCELoss"]
