"""Ignite metrics that MONAI and ignite lack."""

from .mean_dice import MeanDice
from .pooled_dice import PooledDice

__all__ = ["MeanDice", "PooledDice"]
