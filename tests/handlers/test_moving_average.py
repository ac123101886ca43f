"""The moving average of a metric: its values, in one run and in a resumed one."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine, Events

from mednext_monai.handlers import MovingAverage


def averages_of(values, average):
    """Run an engine whose metric takes these values, one an epoch; return the averages."""
    averages = []
    engine = Engine(lambda e, b: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(dice=values[e.state.epoch - 1]))
    average.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: averages.append(e.state.metrics["dice_average"]))
    engine.run([0], max_epochs=len(values))
    return averages


def test_the_moving_average_begins_with_the_first_value_and_continues_in_a_resumed_run(tmp_path):
    values = [0.5, 0.7, math.nan, 0.2]
    expected = [0.5, 0.9 * 0.5 + 0.1 * 0.7]
    expected += [expected[-1], 0.9 * expected[-1] + 0.1 * 0.2]
    assert averages_of(values, MovingAverage("dice")) == pytest.approx(expected, abs=1e-15)

    first, resumed = MovingAverage("dice"), MovingAverage("dice")
    assert averages_of(values[:2], first) == pytest.approx(expected[:2], abs=1e-15)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert averages_of(values[2:], resumed) == pytest.approx(expected[2:], abs=1e-15)


def test_a_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="momentum must be between 0 and 1, got 1.5"):
        MovingAverage("dice", momentum=1.5)
