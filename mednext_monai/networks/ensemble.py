"""Networks of several folds as one network."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Ensemble", "ensemble"]


class Ensemble(nn.Module):
    """
    The mean of the class probabilities of several networks, as published for the networks of several folds.

    Returns the logarithm of the mean, ``(B, classes, *spatial)``: its softmax is the mean, so that an inferer uses it
    like the logits of one network. Memory and time of the activations are those of one network at a time.

    Args:
        members: networks that map the same input to logits of the same classes.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probabilities, float32."""
        total = torch.softmax(self.members[0](x).float(), dim=1)
        for member in self.members[1:]:
            total += torch.softmax(member(x).float(), dim=1)
        return torch.log(total / len(self.members))


def ensemble(network: nn.Module, count: int) -> nn.Module:
    """
    Return an :py:class:`Ensemble` of a network and copies of it, whose weights are loaded later.

    Args:
        network: the first member.
        count: number of members. For 1, the network itself is returned.

    Raises:
        ValueError: if ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}.")
    return network if count == 1 else Ensemble([network, *(copy.deepcopy(network) for _ in range(count - 1))])
