"""The learning rate of each epoch as a metric."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler

from mednext_monai.handlers import LearningRate


def test_the_rate_is_that_of_the_epoch_and_not_of_the_next_one():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    engine, rates = Engine(lambda engine, batch: None), []
    LearningRate(optimizer).attach(engine)
    LrScheduleHandler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), print_lr=False).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: rates.append(engine.state.metrics["learning_rate"]))
    engine.run([0, 0], max_epochs=3)
    assert rates == [0.8, 0.4, 0.2]
