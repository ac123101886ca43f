"""The mean Dice is MONAI's, and NaN where nothing can be averaged."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import MeanDice as MonaiMeanDice
from monai.handlers import from_engine
from monai.networks import one_hot

from mednext_monai.metrics import MeanDice


def score(metric_type, labels: list[torch.Tensor]) -> float:
    """Predict class 1 everywhere for the given labels ``(X, Y, Z)``, one case a batch."""
    outputs = [
        [{"pred": one_hot(torch.ones_like(label)[None], 3, dim=0), "label": one_hot(label[None], 3, dim=0)}]
        for label in labels
    ]
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    metric_type(include_background=False, output_transform=from_engine(["pred", "label"])).attach(engine, "dice")
    return engine.run(outputs).metrics["dice"]


def test_the_mean_is_monais_if_a_class_occurs_and_nan_if_none_does():
    empty, half = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    half[:2] = 1
    assert score(MeanDice, [empty, half]) == score(MonaiMeanDice, [empty, half]) == pytest.approx(2 / 3)
    assert score(MonaiMeanDice, [empty, empty]) == 0  # which is why it is not used
    assert math.isnan(score(MeanDice, [empty, empty]))


def test_a_network_that_finds_nothing_has_a_score_of_zero():
    assert score(MeanDice, [torch.full((4, 4, 4), 2.0)]) == 0


def test_class_maps_score_as_one_hot_volumes_do():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(0, n, (2, 1, 6, 5, 4), generator=generator).float() for n in (2, 3, 4, 1)]
    results = []
    for num_classes in (4, None):
        outputs = [
            [{key: m if num_classes else one_hot(m, 4, dim=0) for key, m in zip(("pred", "label"), pair)}]
            for pair in maps
        ]
        engine = Engine(lambda engine, batch: batch)
        engine.state.metric_details = {}
        metric = MeanDice(
            include_background=False,
            num_classes=num_classes,
            class_names=["background", "x", "y", "z"],
            output_transform=from_engine(["pred", "label"]),
        )
        metric.attach(engine, "dice")
        results.append(engine.run(outputs).metrics)
    assert results[0] == results[1]
    assert set(results[0]) == {"dice", "dice/x", "dice/y", "dice/z"}
