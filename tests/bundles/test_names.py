"""Names are data: a case, a class or a folder may have any name that the file system allows, and none is evaluated."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest
from helpers.bundles import TINY
from helpers.datasets import describe, write_box_case

from mednext_monai import bundles
from mednext_monai.data import training_cases
from mednext_monai.options import plain
from mednext_monai.planning import plan

FOLDER = "my #1 @home %d $x::y 'q' \"{é}"
ATTACK = "$[open('pwned', 'w')]"
NAMES = [ATTACK, "@epochs", "%run", "a#1 b::2", "é 'q' \"w\" {x} %s %(y)d", "+x @y $z"]
TEST = "$@test::1 #2 '%s' \"{é}"
CLASSES = ["$open('pwned', 'w')", "_target_"]


@pytest.fixture
def task(tmp_path) -> Path:
    """A plan of a data set whose folder, cases, channel and classes have such names."""
    data = tmp_path / FOLDER
    for seed, name in enumerate(NAMES):
        write_box_case(data, name, seed)
    write_box_case(data, TEST, 9, labeled=False)
    describe(
        data,
        name="$open('pwned', 'w')",
        modality={"0": "@MRI"},
        labels={"0": "background", "1": CLASSES[0], "2": CLASSES[1]},
        training=[{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in NAMES],
        test=[f"./imagesTs/{TEST}.nii.gz"],
    )
    file = tmp_path / "task.json"
    result = plan(data, file, processes=0, progress=False)
    assert plain(json.loads(file.read_text())) == result and result["labels"][1:] == CLASSES
    return file


def run(bundle: Path, run_id: str, *configs: str | Path, options: tuple[str, ...] = ()) -> str:
    """Run a bundle in its folder; return what it printed."""
    files = json.dumps([str(config) for config in configs])
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", files, *TINY, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
def test_a_data_set_with_any_names_is_planned_trained_evaluated_and_segmented(task, tmp_path):
    page = task.with_suffix(".html").read_text(encoding="utf-8")
    assert all(escape(name) in page and f">{name}<" not in page for name in NAMES if escape(name) != name)
    bundle, overlay = bundles.copy("mednext_s_k3", tmp_path), task
    short = ("--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "1")
    log = run(bundle, "training", "configs/train.json", overlay, options=(*short, "--fold", "all"))
    assert "6 cases are preprocessed in" in log
    assert {marker.parents[1].name for marker in bundle.glob("cache/v*/*/*/case.json")} == set(NAMES)
    run(bundle, "evaluating", "configs/train.json", "configs/evaluate.json", overlay, options=("--fold", "all"))
    with open(bundle / "eval" / "fold_all" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == set(NAMES)
    run(bundle, "inferring", "configs/inference.json", overlay, options=("--mirror", "false"))
    assert (bundle / "eval" / f"{TEST}.nii.gz").is_file()
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


@pytest.mark.slow
def test_a_bundle_from_such_a_plan_holds_the_names_and_evaluates_none(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = bundles.new_bundle("S", 3, task, tmp_path / "$new #1")
    metadata = plain(json.loads((bundle / "configs" / "metadata.json").read_text()))
    assert metadata["name"] == "$new #1"
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())[1:] == CLASSES
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# $new #1\n") and CLASSES[0] in page
    again = bundles.new_bundle("S", 5, bundle / "configs" / "task.json", tmp_path / "again")
    assert json.loads((again / "configs" / "task.json").read_text()) == json.loads(task.read_text())
    run(bundle, "training", "configs/train.json", options=("--epochs", "1", "--iterations_per_epoch", "1"))
    run(bundle, "inferring", "configs/inference.json", options=("--mirror", "false"))
    assert (bundle / "eval" / f"{TEST}.nii.gz").is_file()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset_dir", ATTACK, "dataset_dir is"),
        ("labels", ["background", ATTACK, "inner"], "labels::1 is"),
        ("splits", [{"train": ["a"], "val": [ATTACK]}], "splits::0::val::0 is"),
        ("spacing", "@patch_size", "spacing is '@patch_size'"),
        ("intensity", "%evil.json::a", "intensity is '%evil.json::a'"),
        ("intensity", {"0": {"_target_": "os.system", "command": "ls"}}, "intensity::0 has the key '_target_'"),
        ("_plan_", {"name": "x", "note": ["$import evil"]}, "_plan_::note::0 is '$import evil'"),
        ("learning_rate", f"$'a' + {ATTACK[1:]}", "learning_rate is"),
        ("learning_rate", "$f'{open(1)}'", "learning_rate is"),
        ("run", ["$'a'; x"], "run::0 is"),
    ],
)
def test_a_plan_with_anything_that_would_be_evaluated_is_refused(dataset, tmp_path, monkeypatch, key, value, message):
    monkeypatch.chdir(tmp_path)
    plan(dataset, tmp_path / "evil.json", processes=0, progress=False, report=False)
    content = json.loads((tmp_path / "evil.json").read_text())
    (tmp_path / "evil.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError) as error:
        bundles.new_bundle("S", 3, tmp_path / "evil.json", tmp_path / "new")
    assert "evil.json: " + message in str(error.value)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_folds_from_a_file(run_bundle, dataset, tmp_path):
    ids = [case["id"] for case in training_cases(dataset, "all")]
    file = tmp_path / "my_folds.json"
    file.write_text(json.dumps([{"train": ids[:2], "val": ids[4:]}]))
    options = ("--epochs", "1", "--iterations_per_epoch", "1", "--val_interval", "1", "--splits", file.name)
    assert "4 cases are preprocessed" in run_bundle("training", "train", options=options).stdout
    file.write_text("[")
    result = run_bundle("training", "train", options=options, check=False)
    assert result.returncode != 0 and "my_folds.json: not valid JSON" in result.stderr
