"""Damaged tables and curves of a run: what reads them names the file, or succeeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypothesis")

from helpers.events import write_scalars
from helpers.fuzz import bounded, damaged_bytes, damaged_json, only_ours
from hypothesis import given
from hypothesis import strategies as st

from mednext_monai.bundles.cross_validation import Fold, _labels
from mednext_monai.evaluation import Labels, check_tables, write_metrics
from mednext_monai.evaluation.metrics import ClassScores
from mednext_monai.files import read_json
from mednext_monai.report import page, write_report

pytestmark = pytest.mark.slow
LABELS = Labels({"one": 1, "two": 2}, {"both": [1, 2]}, 3)
SETTINGS = {
    "dataset_dir": "no/such/folder",
    "checkpoint": "models/model.pt",
    "fold": 0,
    "mirror": True,
    "save_predictions": True,
    "surface_dice_tolerance": 1.0,
    "surface_dice_unit": "mm",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a bundle that was evaluated, with curves."""
    folder = tmp_path_factory.mktemp("run") / "bundle"
    (folder / "models").mkdir(parents=True)
    scores = [
        ClassScores(case, name, 0.5 + 0.1 * i, 0.6, 2.0, 1.0, 1.5, -0.5, -0.3, 9, 1, 2, 99, "")
        for i, case in enumerate("abc")
        for name in ("one", "two", "both")
    ]
    write_metrics(scores, LABELS, folder / "eval", SETTINGS, {"d": "damaged"})
    write_scalars(folder / "eval", "mean_train_loss", {1: 0.5, 2: 0.25})
    return folder


def damaged_run(data, run: Path, folder: Path) -> None:
    """Copy a run, with one or two of its files damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        if file.suffix == ".json":
            file.write_bytes(data.draw(damaged_json(read_json(file))))
        else:
            file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))


@bounded(600)
@given(data=st.data())
def test_report(tmp_path_factory, run, data):
    folder = tmp_path_factory.getbasetemp() / "bundle"
    damaged_run(data, run, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "hardware", dict)
        with only_ours(str(folder)):
            written = write_report(folder)
            assert written.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert not [file for file in (folder / "eval").iterdir() if file.name.startswith(".")]


STATISTICS = {
    "settings": {**SETTINGS, "classes": {"one": 1, "two": 2}, "regions": {"both": [1, 2]}, "ignore_label": 3},
    "versions": {"mednext_monai": "0.1.0"},
}


@bounded(500)
@given(content=damaged_json(STATISTICS), format=st.sampled_from(["table", "nnunet"]))
def test_tables_that_would_be_replaced(tmp_path_factory, content, format):
    folder = tmp_path_factory.getbasetemp()
    for name in ("metrics.json", "summary.json"):
        (folder / name).write_bytes(content)
    with only_ours(str(folder)):
        check_tables(folder, SETTINGS, format)


@bounded(500)
@given(content=damaged_json(STATISTICS))
def test_tables_of_folds(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "metrics.json").write_bytes(content)
    torch.save({}, folder / "model.pt")
    fold = Fold(0, folder / "model.pt", folder, [], True)
    assert isinstance(fold.lacks(), str)
    with only_ours(str(folder)):
        found = _labels([fold])
        assert found.classes is None or found.named_values()
