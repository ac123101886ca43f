"""What a report finds in the folder of a bundle."""

from __future__ import annotations

import json

import pytest
from helpers.events import write_scalars

from mednext_monai.evaluation import Labels
from mednext_monai.evaluation.metrics import empty_scores
from mednext_monai.evaluation.output import write_metrics
from mednext_monai.report.run import parts_of

LABELS = Labels({"one": 1})


def write_dice(folder, **dice: float) -> None:
    """Write tables with these Dice values by case."""
    rows = []
    for case, value in dice.items():
        row = empty_scores(case, "one", 8)
        object.__setattr__(row, "dice", value)
        rows.append(row)
    write_metrics(rows, LABELS, folder, {"dataset_dir": str(folder / "nowhere")})


def test_parts_are_all_folds_together_then_each_fold(tmp_path):
    with pytest.raises(ValueError, match="it has neither models/ nor eval/"):
        parts_of(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match="has no training and no evaluation"):
        parts_of(tmp_path)
    write_scalars(tmp_path / "eval/fold_1", "mean_train_loss", {1: 0.5})
    write_dice(tmp_path / "eval", a=0.5)
    write_dice(tmp_path / "eval/cross_validation", a=0.5)
    assert [part.title for part in parts_of(tmp_path)] == ["All folds", "Fold 0", "Fold 1"]


def test_best_median_and_worst_case_are_chosen_among_those_with_a_value(tmp_path):
    write_dice(tmp_path / "eval", a=0.25, b=0.75, c=float("nan"), d=0.5)
    (part,) = parts_of(tmp_path)
    assert part.chosen_cases() == {"best": "b", "median": "d", "worst": "a"}
    with pytest.raises(ValueError, match="predictions/a.nii.gz; mednext evaluate --save_predictions true writes it"):
        part.files("a", None)
    write_dice(tmp_path / "eval", a=0.25)
    assert part.chosen_cases() == {"best": "a"}
    (tmp_path / "eval/metrics.csv").write_text("other,table\n1,2\n")
    assert part.rows() == [] and part.chosen_cases() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.25", "0.2x"), "metrics.csv: line 2 is damaged: .* numbers or nothing in dice"),
        (lambda text: text[:-20], "metrics.csv: line 3 is damaged: it must have 14 cells"),
        (lambda text: text + "\udcff", "metrics.csv: cannot be read as a table"),
        (lambda text: text + '"', "metrics.csv: cannot be read as a table"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, change, message):
    write_dice(tmp_path / "eval", a=0.25, b=0.75)
    file = tmp_path / "eval/metrics.csv"
    file.write_text(change(file.read_text()), errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        parts_of(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": 1},
        {"settings": {"classes": [1]}},
        {"settings": {"dataset_dir": 2}},
        {"settings": {"ignore_label": []}},
        {"versions": []},
        {"classes": {"one": {}}},
        {"worst_cases": [{"case": "a", "class": "one", "dice": "x", "note": ""}]},
    ],
)
def test_damaged_statistics_are_named(tmp_path, change):
    write_dice(tmp_path / "eval", a=0.25)
    (part,) = parts_of(tmp_path)
    content = part.statistics()
    assert content["classes"]["one"]["dice"]["mean"] == 0.25
    (tmp_path / "eval/metrics.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="metrics.json: is damaged, or not a table of mednext evaluate"):
        part.statistics()
