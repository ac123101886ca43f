"""Ignite metrics that MONAI and ignite lack."""

from .pooled_dice import PooledDice

__all__ = ["PooledDice"]
