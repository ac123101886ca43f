"""The two norms of the blocks."""

from __future__ import annotations

import torch
import torch.nn as nn

__all__ = ["ChannelGroupNorm", "ChannelLayerNorm"]


class ChannelLayerNorm(nn.Module):
    """
    Layer normalisation over the channels of every voxel, for channels-first input of any size.

    ``torch.nn.LayerNorm`` needs the channels last; MONAI's ``MedNeXt`` normalises over kernel-sized windows instead.

    Args:
        num_channels: number of channels C of the input ``(B, C, ...)``.
        eps: added to the variance. Defaults to 1e-5.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        x = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + self.eps)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class ChannelGroupNorm(nn.GroupNorm):
    """
    ``torch.nn.GroupNorm`` that also takes one voxel per channel, as the bottleneck has for an input of 16 per axis.

    torch's module refuses that for a batch of one; the operator under it gives the bias, the normalised value being 0.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
