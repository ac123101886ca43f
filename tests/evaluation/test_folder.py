"""Evaluation of two folders: every class has a row in every case, and what cannot be evaluated is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.datasets import save
from helpers.segmentations import GRID, write_pairs

from mednext_monai.evaluation import Labels, evaluate_folder


def box(value: int, length: int = 4) -> np.ndarray:
    array = np.zeros((8, 8, 8), np.uint8)
    array[2 : 2 + length, 2:6, 2:6] = value
    return array


def test_classes_that_a_case_lacks_have_a_row_without_value(tmp_path):
    pairs = [(box(1), box(1)), (box(3), box(3, 2))]
    result = evaluate_folder(*write_pairs(tmp_path, pairs), processes=1)
    assert result.labels.classes == {"1": 1, "3": 3} and not result.problems
    assert [(row.case, row.name) for row in result.scores] == [
        ("case_0", "1"),
        ("case_0", "3"),
        ("case_1", "1"),
        ("case_1", "3"),
    ]
    dice = [row.dice for row in result.scores]
    assert (dice[0], dice[3]) == (1, 2 / 3) and math.isnan(dice[1]) and math.isnan(dice[2])
    assert result.scores[1].note == "absent in both" and result.scores[1].true_negatives == 512
    assert result.scores[3].volume_difference_ml == pytest.approx(2 * 4 * 4 * 3 / 1000)  # voxels of 1 x 1.5 x 2 mm


def test_names_regions_and_ignored_label(tmp_path):
    reference = box(1)
    reference[0] = 9
    prediction = box(2)
    prediction[0] = 1
    labels = Labels({"one": 1, "two": 2, "three": 3}, {"any": [1, 2, 3]}, ignore=9)
    result = evaluate_folder(*write_pairs(tmp_path, [(prediction, reference)]), labels, processes=1)
    assert {row.name: row.dice for row in result.scores if row.name != "three"} == {"one": 0, "two": 0, "any": 1}
    assert result.scores[0].false_positives == 0 and result.scores[2].true_negatives == 448
    only = Labels(None, {"any": [1, 2, 3]}, ignore=9, only_regions=True)
    (row,) = evaluate_folder(*write_pairs(tmp_path, [(prediction, reference)]), only, processes=1).scores
    assert (row.name, row.dice) == ("any", 1)


def test_cases_that_cannot_be_evaluated_are_named_and_do_not_stop_the_others(tmp_path):
    folders = write_pairs(tmp_path, [(box(1), box(1))] * 5)
    (tmp_path / "pred/case_1.nii.gz").write_bytes(b"damaged")
    save(tmp_path / "pred/case_2.nii.gz", box(1), GRID @ np.diag([2, 1, 1, 1]))
    save(tmp_path / "pred/case_3.nii.gz", box(7), GRID)
    (tmp_path / "ref/case_4.nii.gz").unlink()
    result = evaluate_folder(*folders, Labels({"one": 1}), processes=2)
    assert [row.case for row in result.scores] == ["case_0"] and list(result.files) == ["case_0"]
    expected = {
        "case_1": "case_1.nii.gz: cannot be read as an image",
        "case_2": "their affines must agree",
        "case_3": "contains the label value(s) [7]; the classes are [1]",
        "case_4": "case_4.nii.gz: no label in",
    }
    assert list(result.problems) == list(expected)
    assert all(text in result.problems[case] for case, text in expected.items())


def test_nothing_to_evaluate_is_an_error(tmp_path):
    folders = write_pairs(tmp_path, [(box(7), box(1))])
    with pytest.raises(ValueError, match=r"evaluated:\n  .*/pred/case_0.nii.gz: contains the label value\(s\) \[7\]"):
        evaluate_folder(*folders, Labels({"one": 1}), processes=1)
    with pytest.raises(ValueError, match="tolerance must be a number of at least 0, got -1"):
        evaluate_folder(*folders, tolerance=-1)


def test_processes_do_not_change_the_result(tmp_path):
    folders = write_pairs(tmp_path, [(box(1, n), box(1)) for n in (1, 2, 3, 4)])
    assert evaluate_folder(*folders, processes=1).scores == evaluate_folder(*folders, processes=2).scores
