"""Several networks, such as those of several folds or bundles, as one network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["Ensemble", "ensemble"]


class Ensemble(nn.Module):
    """
    The mean of the class probabilities of several networks, as published for the networks of several folds.

    Returns the logarithm of the mean, ``(B, classes, *spatial)``: its softmax is the mean, so that an inferer uses it
    like the logits of one network. Memory and time of the activations are those of one network at a time.

    Args:
        members: networks that map an input to logits of the same classes.
        groups: the numbers of the members that take the same input, for each group; their mean is returned for the
            number of the group as a second argument, and for a group of one its logits. Defaults to ``None``: all in
            one group.
    """

    def __init__(self, members: Sequence[nn.Module], groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.groups = [list(range(len(members)))] if groups is None else [list(group) for group in groups]

    def forward(self, x: torch.Tensor, group: int = 0) -> torch.Tensor:
        """Return the logarithm of the mean probabilities of a group, float32."""
        first, *others = (self.members[number] for number in self.groups[group])
        if not others:
            return first(x)
        total = torch.softmax(first(x).float(), dim=1)
        for member in others:
            total += torch.softmax(member(x).float(), dim=1)
        return torch.log(total / (1 + len(others)))


def ensemble(
    network: nn.Module,
    count: int,
    others: Sequence[nn.Module] = (),
    groups: Sequence[Sequence[int]] | None = None,
) -> nn.Module:
    """
    Return an :py:class:`Ensemble` of a network, copies of it, and others, whose weights are loaded later.

    Args:
        network: the first member.
        count: number of members that are copies of it, itself included.
        others: the last members. Defaults to none. For one member in all, the network itself is returned.
        groups: as for :py:class:`Ensemble`. Defaults to ``None``.

    Raises:
        ValueError: if ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}.")
    members = [network, *(copy.deepcopy(network) for _ in range(count - 1)), *others]
    return network if len(members) == 1 else Ensemble(members, groups)
