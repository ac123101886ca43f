"""Promises of the measuring: contestants take turns, values are those of their steps, ratios are right."""

from __future__ import annotations

import json

import pytest
from helpers.benchmark import measurements

from mednext_monai.benchmark.timing import Measurement, compare, ratios, seconds


def test_ratios_pair_the_rounds_and_are_above_1_where_ours_is_less():
    # by hand: 4/2, 3/1, 10/4 = 2, 3, 2.5; the ratio of the medians would be 2
    found = ratios({"ours": [2.0, 1.0, 4.0], "peer": [4.0, 3.0, 10.0], "same": [2.0, 1.0, 4.0]})
    assert found == {
        "peer": {"median": 2.5, "min": 2.0, "max": 3.0},
        "same": {"median": 1.0, "min": 1.0, "max": 1.0},
    }
    assert ratios({"ours": [0.0], "peer": [1.0]}) == {}


def test_contestants_take_turns_after_warm_up_and_a_peer_that_fails_is_skipped():
    order = []

    def fails() -> None:
        raise RuntimeError("out of memory\nand much more")

    steps = {"ours": lambda: order.append("A"), "peer": lambda: order.append("B"), "broken": fails}
    result = compare(steps, seconds, rounds=3, warmup=2, check=lambda name, _: {"output": 0.5})
    assert "".join(order) == "AABB" + "AB" * 3
    assert result["skipped"] == {"broken": "RuntimeError: out of memory"}
    assert result["agreement"] == {"ours": {"output": 0.5}, "peer": {"output": 0.5}}
    assert [len(values) for values in result["values"].values()] == [3, 3]
    with pytest.raises(RuntimeError, match="out of memory"):
        compare({"ours": fails}, seconds, rounds=1)


def test_every_value_is_that_of_its_step():
    ticks = iter([1.0, 10.0, 2.0, 20.0])
    result = compare({"ours": lambda: None, "peer": lambda: None}, lambda step: next(ticks), rounds=2)
    assert result["values"] == {"ours": [1.0, 2.0], "peer": [10.0, 20.0]}


def test_a_measurement_survives_json():
    for measurement in measurements():
        assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))) == measurement
