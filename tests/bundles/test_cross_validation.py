"""``mednext cross-validate``: what it runs, in which order, and what it makes of what the folds have written."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundles import TINY
from helpers.datasets import AFFINE, make_decathlon, save

from mednext_monai import bundles
from mednext_monai.bundles import cross_validation
from mednext_monai.cli import main
from mednext_monai.data import training_cases
from mednext_monai.data.io import read_label, write_segmentation
from mednext_monai.evaluation import Labels, evaluate_folder, read_labels, score_case, write_metrics

LABELS = Labels({"one": 1, "two": 2})


@pytest.fixture
def dataset(tmp_path) -> Path:
    return make_decathlon(tmp_path / "data", cases=6)


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return bundles.copy("mednext_s_k3", ".")


@pytest.fixture
def runs(monkeypatch, dataset, bundle) -> list[str]:
    """
    The commands that were run: a stand-in writes what they write. A fold in ``FAILING`` fails after its first epoch.

    The segmentations are the labels, with a separate piece of the class 1 too many.
    """
    commands: list[str] = []

    def run(name: str, arguments: list[str]) -> int:
        commands.append(shlex.join([name, *arguments[1:]]))
        options = dict(zip(arguments[1::2], arguments[2::2]))
        fold = int(options["--fold"])
        folder = f"fold_{fold}" if fold else ""
        weights = Path(arguments[0], "models", folder, "model.pt")
        weights.parent.mkdir(exist_ok=True)
        if name == "train":
            failing = weights.with_name("fails").exists()
            torch.save({"a": torch.zeros(1)}, weights.with_name("last.pt") if failing else weights)
            return int(failing)
        output, scores = Path(options.get("--output_dir", Path(arguments[0], "eval", folder))), []
        for case in training_cases(dataset, fold, "validation"):
            label, affine = read_label(case["label"])
            found = label.copy()
            found[18:, 16:, 10:] = 1
            write_segmentation(found, output / "predictions" / f"{case['id']}.nii.gz", affine=affine)
            scores += score_case(case["id"], found, label, (1.0, 1.0, 2.0), LABELS)
        settings = {"checkpoint": str(weights), "fold": fold, "mirror": True, "save_predictions": True}
        write_metrics(scores, LABELS, output, settings)
        return 0

    monkeypatch.setattr(cross_validation, "run_workflow", run)
    return commands


def run(bundle: Path, dataset: Path, *options: str) -> int:
    return main(["cross-validate", str(bundle), "--dataset_dir", str(dataset), *options])


def test_all_folds_are_trained_evaluated_collected_and_postprocessed(runs, bundle, dataset, capsys):
    data = f"--dataset_dir {dataset}"
    assert run(bundle, dataset, "--epochs", "3", "--tolerance", "2") == 0
    for fold in range(5):
        train, evaluate = runs[2 * fold : 2 * fold + 2]
        assert train == f"train {data} --epochs 3 --fold {fold}"  # the tolerance is an option of the evaluation
        assert evaluate == f"evaluate {data} --epochs 3 --tolerance 2 --fold {fold} --save_predictions true"
    assert len(runs) == 10
    root = bundle / "eval" / "cross_validation"
    names = [f"case_{i:02d}" for i in range(6)]
    assert sorted(file.name for file in (root / "predictions").iterdir()) == [f"{name}.nii.gz" for name in names]
    expected = evaluate_folder(
        root / "predictions", dataset / "labelsTr", read_labels(dataset / "dataset.json"), 2, processes=1
    )
    write_metrics(expected.scores, expected.labels, dataset)
    assert (root / "metrics.csv").read_bytes() == (dataset / "metrics.csv").read_bytes()
    settings = json.loads((root / "metrics.json").read_text())["settings"]
    assert settings["surface_dice_tolerance"] == 2 and settings["folds"] == [0, 1, 2, 3, 4]
    decision = json.loads((root / "postprocessing.json").read_text())
    assert decision["keep_largest_component"][-1]["classes"] == [1]
    after = json.loads((root / "postprocessed/metrics.json").read_text())
    assert after["classes"]["one"]["dice"]["mean"] == 1 > expected.scores[0].dice
    out = capsys.readouterr().out
    assert f"$ mednext train mednext_s_k3 {data} --epochs 3 --fold 0\n" in out
    assert f"--folds 0 1 2 3 4 --postprocess {root}/postprocessing.json" in out


def test_a_failure_stops_and_the_same_command_continues(runs, bundle, dataset, capsys):
    marker = bundle / "models/fold_1/fails"
    marker.parent.mkdir()
    marker.touch()
    options = ("--folds", "0", "1", "--val_interval", "7")
    assert run(bundle, dataset, *options) == 1
    assert "stopped at fold 1; folds that are trained: 0." in capsys.readouterr().err
    assert [command.split()[0] for command in runs] == ["train", "evaluate", "train"]
    marker.unlink()
    runs.clear()
    assert run(bundle, dataset, *options) == 0
    assert [command.split()[0] for command in runs] == ["train", "evaluate"]
    assert runs[0].endswith("--val_interval 7 --fold 1 --resume true")
    runs.clear()
    assert run(bundle, dataset, *options) == 0 and not runs  # nothing is left to do
    later = os.stat(bundle / "eval/metrics.json").st_mtime + 10
    os.utime(bundle / "models/model.pt", (later, later))  # trained anew
    assert run(bundle, dataset, *options) == 0 and [command.split()[0] for command in runs] == ["evaluate"]


def test_a_stated_output_folder_has_a_part_for_each_fold(runs, bundle, dataset, tmp_path):
    assert run(bundle, dataset, "--folds", "0,2", "--output_dir", str(tmp_path / "out")) == 0
    assert [command.split("--output_dir ")[1].split()[0] for command in runs] == [
        str(tmp_path / "out"),
        str(tmp_path / "out"),
        str(tmp_path / "out/fold_2"),
        str(tmp_path / "out/fold_2"),
    ]
    folder = tmp_path / "out/cross_validation"
    stale = training_cases(dataset, 2, "validation")[0]["id"]
    assert (folder / f"predictions/{stale}.nii.gz").is_file()
    assert run(bundle, dataset, "--folds", "0", "--output_dir", str(tmp_path / "out"), "--overwrite", "true") == 2
    (folder / "metrics.json").unlink()
    assert run(bundle, dataset, "--folds", "0", "--output_dir", str(tmp_path / "out"), "--collect_only") == 0
    assert not (folder / f"predictions/{stale}.nii.gz").exists()


def test_collecting_alone_says_what_is_missing(runs, bundle, dataset, capsys):
    assert run(bundle, dataset, "--collect_only") == 1
    err = capsys.readouterr().err
    assert "fold 0: it is not evaluated; fold 1: it is not evaluated" in err
    assert "mednext evaluate mednext_s_k3 --fold 0 --save_predictions true" in err and not runs
    run(bundle, dataset, "--folds", "0")
    (bundle / "eval/predictions" / f"{training_cases(dataset, 0, 'validation')[0]['id']}.nii.gz").unlink()
    assert run(bundle, dataset, "--folds", "0", "--collect_only") == 1
    assert "fold 0: there is no " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"), [([1], "fold 0: it is not evaluated"), ({"classes": {"one": "1"}}, "settings are damaged")]
)
def test_damaged_tables_of_a_fold_are_named(runs, bundle, dataset, capsys, settings, message):
    run(bundle, dataset, "--folds", "0")
    file = bundle / "eval/metrics.json"
    content = json.loads(file.read_text())
    content["settings"] = {**content["settings"], **settings} if isinstance(settings, dict) else settings
    file.write_text(json.dumps(content))
    assert run(bundle, dataset, "--folds", "0", "--collect_only") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--fold", "1"), 2, "--fold is set by cross-validate itself"),
        (("--folds", "0", "0"), 1, "--folds must be different integers such as 0 1 2, got 0 0."),
        (("--folds", "all"), 1, "--folds must be different integers"),
        (("--epoch", "1"), 2, "there is no option --epoch. Did you mean epochs?"),
        (("--epochs", "0"), 1, "epochs must be an integer of at least 1, got 0"),
        (("--folds", "7"), 1, "fold"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(runs, bundle, dataset, capsys, options, status, message):
    assert run(bundle, dataset, *options) == status
    assert message in capsys.readouterr().err and not runs


def test_folds_that_share_a_case_are_refused(runs, bundle, dataset, tmp_path, capsys):
    ids = [f"case_{i:02d}" for i in range(6)]
    splits = [{"train": ids[1:], "val": ids[:1]}, {"train": ids[2:], "val": ids[:2]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    assert run(bundle, dataset, "--splits", str(tmp_path / "splits.json")) == 1
    assert "the case case_00 is validated by several folds" in capsys.readouterr().err and not runs


@pytest.mark.slow
def test_two_real_folds_and_a_prediction_with_their_postprocessing(bundle, dataset, tmp_path, capfd):
    for i in range(6):  # an orphan piece that a trained network would find, too
        image = nib.load(dataset / f"imagesTr/case_{i:02d}.nii.gz")
        save(tmp_path / f"new/case_{i}.nii.gz", np.asarray(image.dataobj), AFFINE)
    options = ["--out_channels", "3", "--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "1"]
    tiny = [text.strip("[]") for text in TINY]
    assert run(bundle, dataset, *options, *tiny, "--mirror", "false", "--folds", "0", "1") == 0, capfd.readouterr().err
    root = bundle / "eval" / "cross_validation"
    assert (root / "metrics.csv").read_text().count("case_") == 2 * (2 + 1)  # classes, validation cases
    decision = tmp_path / "decision.json"
    steps = [{"classes": [1], "minimum_size_mm3": None}, {"classes": [2], "minimum_size_mm3": None}]
    decision.write_text(json.dumps({"keep_largest_component": steps}))
    command = ["predict", str(bundle), str(tmp_path / "new"), str(tmp_path / "out"), "--folds", "0", "1"]
    command += ["--network_def::base_channels", "4", "--mirror", "false", "--postprocess", str(decision)]
    assert main(command) == 0, capfd.readouterr().err
    assert (
        main(["apply-postprocessing", str(tmp_path / "out"), str(tmp_path / "again"), "--decision", str(decision)]) == 0
    )
    for i in range(6):
        raw, within, after = (
            np.asarray(nib.load(tmp_path / folder / f"case_{i}.nii.gz").dataobj)
            for folder in ("out", "out/postprocessed", "again")
        )
        np.testing.assert_array_equal(within, after)
        assert raw.shape == within.shape
    command[-1] = str(tmp_path / "none.json")
    assert main(command) == 1 and "none.json: no such file" in capfd.readouterr().err
