"""The files of an evaluation: strict JSON, empty cells for no value, complete or not there."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from mednext_monai import __version__
from mednext_monai.evaluation import Labels, check_tables, score_case, write_metrics

LABELS = Labels({"liver": 1, "tumor, left": 2}, {"any": [1, 2]}, ignore=5)


def scores():
    prediction = np.zeros((6, 6, 6), np.int8)
    prediction[1:3, 1:3, 1:3] = 1
    return score_case("case_0", prediction, prediction, (1, 1, 1), LABELS)


def test_csv_has_a_row_per_case_and_class(tmp_path):
    path, _ = write_metrics(scores(), LABELS, tmp_path / "new")
    assert path == tmp_path / "new/metrics.csv"
    with open(path, newline="") as file:
        liver, tumor, region = csv.DictReader(file)
    assert list(liver)[:8] == [
        "case",
        "class",
        "dice",
        "surface_dice",
        "hd95_mm",
        "volume_ml",
        "reference_ml",
        "volume_difference_ml",
    ]
    assert (liver["class"], liver["dice"], liver["hd95_mm"], liver["volume_ml"]) == ("liver", "1.0", "0.0", "0.008")
    assert (tumor["class"], tumor["dice"], tumor["hd95_mm"], tumor["note"]) == ("tumor, left", "", "", "absent in both")
    assert (region["class"], region["true_positives"]) == ("any", "8")


def test_json_has_settings_versions_and_problems(tmp_path):
    _, path = write_metrics(scores(), LABELS, tmp_path, {"surface_dice_tolerance": 1.0}, {"case_9": "damaged"})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["settings"] == {
        "surface_dice_tolerance": 1.0,
        "classes": {"liver": 1, "tumor, left": 2},
        "regions": {"any": [1, 2]},
        "only_regions": False,
        "ignore_label": 5,
    }
    assert content["versions"]["mednext_monai"] == __version__ and "monai" in content["versions"]
    assert content["classes"]["tumor, left"]["dice"]["mean"] is None
    assert content["problems"] == {"case_9": "damaged"} and content["cases"] == 1


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    write_metrics(scores(), LABELS, tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()

    def fail(*_):
        raise OSError("interrupted")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="interrupted"):
        write_metrics(scores() * 2, LABELS, tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.json"]


def test_tables_replace_only_those_of_the_same_segmentations(tmp_path):
    source = {"prediction_dir": str(tmp_path / "a"), "label_dir": "ref"}
    check_tables(tmp_path, source)
    write_metrics(scores(), LABELS, tmp_path, {**source, "surface_dice_tolerance": 1.0})
    check_tables(tmp_path, {**source, "prediction_dir": str(tmp_path / "b/../a")}, "nnunet")
    for other in ({**source, "label_dir": "other"}, {"checkpoint": "model.pt", "fold": 0}):
        with pytest.raises(ValueError, match=r"metrics\.json holds another evaluation, of .*--overwrite true"):
            check_tables(tmp_path, other)
        check_tables(tmp_path, other, overwrite=True)
    with pytest.raises(ValueError, match="format must be table or nnunet, got 'xml'"):
        check_tables(tmp_path, source, "xml", True)


def test_the_same_evaluation_is_recognized_from_another_folder(tmp_path, monkeypatch):
    for folder, path in ((tmp_path, "bundle/model.pt"), (tmp_path / "bundle", "model.pt")):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        check_tables(tmp_path / "eval", {"checkpoint": path, "fold": 0})
        _, table = write_metrics(scores(), LABELS, tmp_path / "eval", {"checkpoint": path, "fold": 0})
        assert json.loads(table.read_text())["settings"]["checkpoint"] == f"{tmp_path}/bundle/model.pt"


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "summary.json"])
def test_a_file_of_others_is_not_replaced(tmp_path, name):
    source = {"prediction_dir": "a", "label_dir": "b"}
    if name != "metrics.json":
        write_metrics(scores(), LABELS, tmp_path, source)
    (tmp_path / name).write_text('{"loss": 1}')
    with pytest.raises(ValueError, match=f"{name} exists and is not a table of this package"):
        check_tables(tmp_path, source, "nnunet")
    check_tables(tmp_path, source, "nnunet", overwrite=True)
    if name == "summary.json":
        check_tables(tmp_path, source)


@pytest.mark.parametrize("change", [{"versions": 1}, {"settings": [1]}, {"settings": {"label_dir": "a\0b"}}])
def test_damaged_statistics_are_no_table_of_ours_or_of_another_evaluation(tmp_path, change):
    source = {"prediction_dir": "a", "label_dir": "b"}
    _, file = write_metrics(scores(), LABELS, tmp_path, source)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    if "versions" in change or "label_dir" in change["settings"]:
        with pytest.raises(ValueError, match="not a table of this package|holds another evaluation, of label_dir"):
            check_tables(tmp_path, source)
    else:
        check_tables(tmp_path, source)  # states no other evaluation
