"""Metrics of each class, with its name."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine

from mednext_monai.metrics import MeanDice, PooledDice
from mednext_monai.metrics.by_class import set_by_class


def one_hot(labels: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).T.reshape(3, 1, 1, -1).float()


def test_a_name_is_one_that_mlflow_takes_and_a_class_without_a_value_has_no_metric():
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = {"dice/b_c": 1.0}
    set_by_class(engine, "dice", [0.5, math.nan], ["background", "left (a)", "b/c"])
    assert engine.state.metrics == {"dice/left _a_": 0.5}
    set_by_class(engine, "dice", [0.5, 0.25], ["background", "only"])
    assert {"dice/class_1": 0.5, "dice/class_2": 0.25}.items() <= engine.state.metrics.items()


@pytest.mark.parametrize("kind", ["mean", "pooled"])
def test_the_dice_of_each_class_is_a_metric_beside_the_mean(kind):
    prediction, label = [1, 1, 2, 0], [1, 0, 2, 2]  # Dice 2/3 and 2/3; without the last voxel 2/3 and 1
    names = ["background", "outer", "inner"]
    if kind == "mean":
        metric = MeanDice(include_background=False, class_names=names, output_transform=lambda output: output)
        output = ([one_hot(prediction)], [one_hot(label)])
    else:
        metric = PooledDice(3, class_names=names, output_transform=lambda output: output)
        output = (one_hot(prediction)[None], torch.tensor(label).reshape(1, 1, 1, 1, -1))
    engine = Engine(lambda engine, batch: output)
    metric.attach(engine, "dice")
    engine.run([0])
    assert engine.state.metrics == pytest.approx({"dice": 2 / 3, "dice/outer": 2 / 3, "dice/inner": 2 / 3})
