"""An ensemble is the mean of the probabilities of its members, for whatever takes the softmax of its output."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.inferers import MedNeXtInferer
from mednext_monai.networks import Ensemble, create_mednext, ensemble


def members(count: int) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [create_mednext("S", 3, out_channels=3, base_channels=4).eval() for _ in range(count)]


def test_its_softmax_is_the_mean_of_the_probabilities():
    nets, x = members(3), torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        expected = sum(net(x).softmax(1) for net in nets) / 3
        torch.testing.assert_close(Ensemble(nets)(x).softmax(1), expected)


def test_sliding_windows_of_an_ensemble_are_the_mean_of_those_of_its_members():
    nets, x = members(2), torch.rand(1, 1, 24, 16, 16)
    inferer = MedNeXtInferer(16)
    with torch.no_grad():
        expected = (inferer(x, nets[0]) + inferer(x, nets[1])) / 2
        torch.testing.assert_close(inferer(x, Ensemble(nets)), expected)


def test_a_probability_of_zero_stays_zero():
    def sure(x):
        return torch.tensor([1000.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)

    both = Ensemble([torch.nn.Identity(), torch.nn.Identity()])
    result = both(sure(None)).softmax(1)
    assert result.isfinite().all() and result[0, 1].max() == 0


def test_one_member_is_the_network_itself_and_several_are_separate():
    (net,) = members(1)
    assert ensemble(net, 1) is net
    three = ensemble(net, 3)
    assert isinstance(three, Ensemble) and three.members[0] is net and three.members[1] is not net
    with torch.no_grad():
        three.members[1].stem.weight.add_(1)
    assert not torch.equal(net.stem.weight, three.members[1].stem.weight)
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        ensemble(net, 0)


def test_a_group_is_the_mean_of_its_members_and_one_member_is_itself():
    nets, x = members(3), torch.rand(1, 1, 16, 16, 16)
    grouped = ensemble(nets[0], 1, nets[1:], [[0, 2], [1]])
    with torch.no_grad():
        torch.testing.assert_close(grouped(x).softmax(1), (nets[0](x).softmax(1) + nets[2](x).softmax(1)) / 2)
        assert torch.equal(grouped(x, group=1), nets[1](x))
    assert list(grouped.members) == nets and ensemble(nets[0], 1, (), [[0]]) is nets[0]
