"""summary.json equals the original's: recorded values, keys, and NaN where a metric has no value."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.reference import load_reference
from helpers.segmentations import make_component_set, write_pairs

from mednext_monai.evaluation import Labels, evaluate_folder, write_nnunet_summary
from mednext_monai.evaluation.cases import Pair

RECORDED = load_reference("postprocessing")["summary"]


def number(value: float | None) -> float:
    return math.nan if value is None else value


def test_values_and_keys_are_those_of_the_original(tmp_path):
    classes, pairs = make_component_set(RECORDED["seed"])
    labels = Labels({f"class {i}": i for i in range(1, classes + 1)})
    path = write_nnunet_summary(evaluate_folder(*write_pairs(tmp_path, pairs), labels, processes=1), tmp_path)
    content = json.loads(path.read_text())
    assert path.name == "summary.json" and sorted(content) == RECORDED["keys"]
    assert len(content["results"]["all"]) == len(RECORDED["all"])
    assert sorted(content["results"]["all"][0]) == RECORDED["case_keys"]
    found = [*content["results"]["all"], content["results"]["mean"]]
    for case, expected in zip(found, [*RECORDED["all"], RECORDED["mean"]]):
        for label, metrics in expected.items():
            assert sorted(case[label]) == sorted(metrics)
            for name, value in metrics.items():
                assert case[label][name] == pytest.approx(number(value), abs=1e-12, nan_ok=True), (label, name)


def test_a_prediction_that_is_in_no_file_has_no_path(tmp_path):
    _, pairs = make_component_set(RECORDED["seed"])
    found = evaluate_folder(*write_pairs(tmp_path, pairs), processes=1)
    unsaved = replace(found, files={case: Pair("", pair.reference) for case, pair in found.files.items()})
    content = json.loads(write_nnunet_summary(unsaved, tmp_path).read_text())["results"]["all"]
    assert [case["reference"] for case in content] == [pair.reference for pair in found.files.values()]
    assert all("test" not in case and "1" in case for case in content)


def test_a_metric_without_a_value_is_nan(tmp_path):
    empty = np.zeros((4, 4, 4), np.uint8)
    evaluation = evaluate_folder(*write_pairs(tmp_path, [(empty, empty)]), Labels({"one": 1}), processes=1)
    content = json.loads(write_nnunet_summary(evaluation, tmp_path).read_text())
    metrics = content["results"]["mean"]["1"]
    missing = {name for name, value in metrics.items() if math.isnan(value)}
    assert missing == {"Dice", "Jaccard", "Precision", "Recall", "False Discovery Rate", "False Negative Rate"}
    assert metrics["Accuracy"] == 1 and metrics["Total Positives Test"] == 0
