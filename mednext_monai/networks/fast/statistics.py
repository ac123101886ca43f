"""Statistics of a volume's channels, for the norm with one group per channel."""

from __future__ import annotations

import torch

__all__ = ["ChannelStatistics"]


class ChannelStatistics:
    """Mean and variance of each channel over voxels that come in parts.

    Every part's own mean is subtracted before squaring, and the parts are combined in float64: no digits are lost
    where the mean is large against the deviation.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self._squares = torch.zeros(channels, dtype=torch.float64, device="cpu")  # of deviations from the mean

    def add(self, rows: torch.Tensor) -> None:
        """Add voxels ``(V, C)``."""
        part = rows.shape[0]
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(rows, None, None, 0.0))
        total = self.count + part
        change = mean - self.mean
        self._squares += variance * part + change.square() * (self.count * part / total)
        self.mean += change * (part / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """Squared deviations divided by the number of voxels, as norms use it."""
        return self._squares / self.count
