"""Statistics by hand, and the table that is printed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mednext_monai.evaluation import Labels, summarize, text_table
from mednext_monai.evaluation.metrics import empty_scores

NAN = math.nan


def rows(name: str, dice: list[float], hd95: list[float]):
    return [
        replace(empty_scores(f"case_{i}", name, 10), dice=d, hd95_mm=h, note="" if d == d else "absent in both")
        for i, (d, h) in enumerate(zip(dice, hd95))
    ]


LABELS = Labels({"liver": 1, "tumor": 2}, {"both": [1, 2]})
SCORES = [
    *rows("liver", [0.9, 0.8, 0.4], [1, 2, 6]),
    *rows("tumor", [0.5, NAN, 0.0], [3, NAN, NAN]),
    *rows("both", [1.0, 1.0, 1.0], [0, 0, 0]),
]


def test_statistics_skip_cases_without_a_value_and_name_them():
    summary = summarize(SCORES, LABELS)
    liver, tumor = summary["classes"]["liver"], summary["classes"]["tumor"]
    assert liver["dice"]["mean"] == pytest.approx(0.7) and liver["dice"]["median"] == 0.8
    assert liver["dice"]["sd"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert liver["dice"]["values"] == 3 and liver["dice"]["without_value"] == {}
    assert tumor["dice"]["mean"] == 0.25 and tumor["dice"]["without_value"] == {"case_1": "absent in both"}
    assert tumor["hd95_mm"]["sd"] is None and tumor["hd95_mm"]["values"] == 1
    assert tumor["surface_dice"]["mean"] is None
    assert summary["mean_over_classes"]["dice"] == pytest.approx((0.7 + 0.25) / 2)  # regions have their own
    assert summary["mean_over_regions"]["dice"] == 1 and summary["cases"] == 3


def test_worst_cases_are_those_with_the_lowest_dice():
    worst = summarize(SCORES, LABELS)["worst_cases"]
    assert [(row["case"], row["class"], row["dice"]) for row in worst[:3]] == [
        ("case_2", "tumor", 0.0),
        ("case_2", "liver", 0.4),
        ("case_0", "tumor", 0.5),
    ]
    assert len(worst) == 5


def test_the_table_shows_means_and_worst_cases():
    lines = text_table(summarize(SCORES, LABELS)).splitlines()
    assert lines[0].split() == "Dice sd median surface Dice HD95 mm volume diff. ml values of HD95".split()
    assert lines[1].split() == ["liver", "0.7000", "0.2646", "0.8000", *"no value 3.0000 0.0000 3 of 3 3".split()]
    assert lines[3].startswith("mean over classes") and "0.4750" in lines[3]
    assert "lowest Dice:" in lines and lines[lines.index("lowest Dice:") + 1] == "  case_2  tumor  0.0000"
