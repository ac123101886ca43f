"""The mean loss of each epoch."""

from __future__ import annotations

import pytest
from helpers.trainer import make_trainer
from ignite.engine import Events

from mednext_monai.handlers import MeanLoss


def test_mean_loss_is_the_mean_of_the_epochs_losses():
    losses = []
    trainer, _, _ = make_trainer(2, [lambda n, o: MeanLoss()])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    trainer.run()
    assert trainer.state.metrics["mean_train_loss"] == pytest.approx(sum(losses[4:]) / 4)
