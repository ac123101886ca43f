"""Gradient clipping: to the norm, only above it, after unscaling."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.trainer import make_trainer
from ignite.engine import Engine, Events

from mednext_monai.handlers import GradientClipping


@pytest.mark.parametrize(("scale", "clipped"), [(1e4, True), (1e-4, False)])
def test_the_gradient_is_clipped_to_the_norm_and_left_alone_below_it(scale, clipped):
    norms = []
    trainer, network, _ = make_trainer(1, [lambda n, o: GradientClipping(n.parameters(), o, 12.0)], scale)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: norms.append(torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()),
    )
    trainer.run()
    assert all(math.isclose(norm, 12, rel_tol=1e-5) for norm in norms) == clipped
    assert max(norms) <= 12 * (1 + 1e-5)


def test_the_gradient_is_unscaled_before_it_is_clipped():
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    handler = GradientClipping(network.parameters(), optimizer, 12.0)
    engine = Engine(lambda e, b: None)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine.scaler.scale(network(torch.ones(1, 2)).sum()).backward()
    handler(engine)
    torch.testing.assert_close(network.weight.grad, torch.ones(1, 2))


def test_the_mean_norm_of_an_epoch_before_clipping_is_a_metric():
    norms: list[float] = []
    trainer, network, _ = make_trainer(1, [lambda n, o: GradientClipping(n.parameters(), o, 1e9)], 1.0)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: norms.append(torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()),
    )
    trainer.run()
    assert math.isclose(trainer.state.metrics["gradient_norm"], sum(norms) / len(norms), rel_tol=1e-5)


def test_a_norm_that_is_not_finite_does_not_count():
    network = torch.nn.Linear(2, 1)
    engine = Engine(lambda e, b: None)
    handler = GradientClipping(network.parameters(), torch.optim.SGD(network.parameters(), lr=1.0))
    for value in (torch.inf, 3.0):
        network.weight.grad = torch.tensor([[value, 4.0]])
        network.bias.grad = torch.zeros(1)
        handler(engine)
    handler._report(engine)
    assert math.isclose(engine.state.metrics["gradient_norm"], 5.0, rel_tol=1e-5)
