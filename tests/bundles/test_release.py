"""Releasing the weights of a trained bundle: what is written, what is refused, and what stays private."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import monai.bundle
import pytest
import torch
from helpers.bundles import BundleRunner, make_member
from helpers.checkpoints import TRAINED
from helpers.datasets import make_decathlon
from helpers.release import SETTINGS, evaluated, make_trained_and_evaluated, write_state, write_tables

from mednext_monai import bundles
from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.bundles.record import replace_weights_section
from mednext_monai.cli import main
from mednext_monai.weights import read_settings, read_state_dict


@pytest.fixture
def trained(tmp_path) -> Path:
    """A bundle after its training and evaluation."""
    return make_trained_and_evaluated(tmp_path)


@pytest.fixture
def released(trained, tmp_path) -> Path:
    text = tmp_path / "license.txt"
    text.write_text("Boxes by nobody, CC0.\n")
    return bundles.release(trained, tmp_path / "out", True, text, "By hand.", evaluated(tmp_path, 0.50012))


def test_the_weights_are_those_of_the_training_in_half_precision_with_its_settings(trained, released):
    before, after = (read_state_dict(bundle / "models" / "model.pt") for bundle in (trained, released))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor.half()) for name, tensor in before.items())
    one, other = (read_settings(bundle / "models" / "model.pt") for bundle in (trained, released))
    assert one == other and other["labels"] == TRAINED["labels"]


def test_the_record_says_how_they_were_trained_and_how_good_they_are(released):
    record = json.loads((released / "models" / "model.json").read_text())
    assert record["bytes"] == (released / "models" / "model.pt").stat().st_size
    training = {"steps": 600, "epochs": 3, "iterations_per_epoch": 200, "learning_rate": 1e-3, "seed": 5}
    assert training.items() <= record["training"].items() and record["training"]["batch_size"] == 2
    assert record["data"] == {
        **{"fold": 0, "training_cases": 3, "name": "Boxes", "license_name": "CC0"},
        "license": "Boxes by nobody, CC0.\n",
    }
    assert record["evaluation"]["classes"]["inner"] == {"dice": 0.25, "surface_dice": None, "hd95_mm": None}
    assert record["evaluation"]["dice_change_of_half_precision"] == 0.00012
    assert record["curve"] == {"loss": [[1, 0.75], [2, 0.5], [3, 0.25]], "Dice of volumes": [[2, 0.375]]}


def test_metadata_and_page_follow_from_the_record(released):
    metadata = json.loads((released / "configs" / "metadata.json").read_text())
    record = json.loads((released / "models" / "model.json").read_text())
    assert metadata["weights"]["sha256"] == record["sha256"]
    assert metadata["eval_metrics"]["mean_dice"] == 0.50012 and metadata["eval_metrics"]["dice"]["outer"] == 0.75
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {"0": "background", "1": "outer", "2": "inner"}
    page = (released / "docs" / "README.md").read_text()
    for text in (
        "segments outer and inner in MRI volumes of Boxes",
        "| outer | 0.7500 | 0.5000 | 3.0000 |",
        "| inner | 0.2500 | – | – |",
        "600 steps (3 epochs of 200) of 2 patches of 32 x 32 x 32 voxels at 1 x 1 x 1 mm, from random weights",
        f"SHA-256 `{record['sha256']}`. Half precision changes the mean Dice by +0.000120.",
        "torch 2.13.0, monai 1.6.1, mednext_monai 0.1.0. By hand.",
        "Boxes; 3 training cases; CC0 (`docs/data_license.txt`).",
    ):
        assert text in page
    assert "has no pretrained weights" not in page and "\n## Train\n" in page
    assert (released / "docs" / "data_license.txt").read_text() == "Boxes by nobody, CC0.\n"
    picture = (released / "docs" / "learning_curve.svg").read_text()
    assert picture.startswith("<svg xmlns=") and "Dice of volumes" in picture and picture.count("<polyline") == 2
    for config in ("train", "inference"):
        content = json.loads((released / "configs" / f"{config}.json").read_text())
        assert content["released_task"] == {"in_channels": 1, "out_channels": 3}
        assert content["out_channels"] is None


def test_nothing_private_is_released(released):
    names = {str(file.relative_to(released)) for file in released.rglob("*") if file.is_file()}
    assert {name.removeprefix("models/") for name in names if name.startswith("models/")} == {
        "model.pt",
        "model.json",
        "labels.csv",
    }
    assert not any(name.startswith(("eval", "cache")) or name.endswith(("task.json", "splits.json")) for name in names)
    for name in names:
        content = (released / name).read_bytes()
        assert b"/home/somebody" not in content and str(released.parent).encode() not in content, name


def test_what_is_released_loads_with_all_weights_from_anywhere(released, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = read_state_dict(released / "models" / "model.pt")
    for kind in ("train", "inference"):
        width = {"base_channels": 4}
        network = monai.bundle.load(
            "out", bundle_dir=released.parent, device="cpu", workflow_type=kind, net_override=width
        )
        loaded = network.state_dict()
        assert loaded.keys() == stored.keys()
        assert all(t.dtype == torch.float32 and torch.equal(t.half(), stored[name]) for name, t in loaded.items())


def test_a_generic_bundle_takes_the_weights_and_a_second_release_replaces_them(trained, tmp_path):
    target = bundles.copy("mednext_s_k3", tmp_path / "bundles")
    (target / "models" / "model.pt").write_bytes(PLACEHOLDER)
    (target / "models" / "model.json").unlink(missing_ok=True)
    for dice in (0.5, 0.625):
        bundles.release(trained, target, evaluate=evaluated(tmp_path, dice))
        page = (target / "docs" / "README.md").read_text()
        assert page.count("## Weights") == 1 and f"| mean | {dice:.4f} |" in page
    assert json.loads((target / "configs" / "metadata.json").read_text())["name"] == "mednext_s_k3"


def test_full_precision_needs_no_second_evaluation(trained, tmp_path):
    folder = bundles.release(trained, tmp_path / "out", half=False)
    record = json.loads((folder / "models" / "model.json").read_text())
    assert record["precision"] == "float32" and record["evaluation"]["dice_change_of_half_precision"] is None
    assert read_state_dict(folder / "models" / "model.pt")["stem.weight"].dtype == torch.float32


def break_evaluation(bundle: Path, tmp_path: Path) -> None:
    (bundle / "eval" / "metrics.json").unlink()


def evaluate_another(bundle: Path, tmp_path: Path) -> None:
    write_tables(bundle / "eval", bundle / "models" / "model_best.pt", tmp_path / "data")


def evaluate_without_mirror(bundle: Path, tmp_path: Path) -> None:
    write_tables(bundle / "eval", bundle / "models" / "model.pt", tmp_path / "data", mirror=False)


def train_again(bundle: Path, tmp_path: Path) -> None:
    os.utime(bundle / "models" / "model.pt", (4e9, 4e9))


def go_on_training(bundle: Path, tmp_path: Path) -> None:
    state = torch.load(bundle / "models" / "last.pt", weights_only=True)
    state["model"]["stem.weight"] += 1
    torch.save(state, bundle / "models" / "last.pt")


def grow(bundle: Path, tmp_path: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state["stem.weight"].view(-1)[0] = 1e6
    torch.save(state, bundle / "models" / "model.pt")
    write_state(bundle)
    write_tables(bundle / "eval", bundle / "models" / "model.pt", tmp_path / "data")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_evaluation, "metrics.json does not exist; evaluate it first: mednext evaluate BUNDLE"),
        (evaluate_another, "is the evaluation of .*model_best.pt, not of .*model.pt"),
        (evaluate_without_mirror, "was evaluated without mirror images"),
        (train_again, "metrics.json is older than .*model.pt"),
        (go_on_training, "last.pt is not the state in which .*model.pt was written"),
        (grow, "too large for half precision; release in full precision: --half false"),
    ],
)
def test_what_does_not_belong_together_is_not_released(trained, tmp_path, damage, message, capsys):
    damage(trained, tmp_path)
    assert main(["bundle", "release", str(trained), str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_weights_of_the_user_and_other_variants_are_not_replaced(trained, tmp_path):
    mine = make_member("mednext_s_k3", tmp_path / "other")
    before = (mine / "models" / "model.pt").read_bytes()
    with pytest.raises(ValueError, match="has weights that were not released; they are not replaced"):
        bundles.release(trained, mine, evaluate=evaluated(tmp_path))
    with pytest.raises(ValueError, match="has kernel_size 5, .* has 3"):
        bundles.release(trained, bundles.copy("mednext_s_k5", tmp_path / "other"), evaluate=evaluated(tmp_path))
    with pytest.raises(ValueError, match="is the bundle itself"):
        bundles.release(trained, trained, evaluate=evaluated(tmp_path))
    assert (mine / "models" / "model.pt").read_bytes() == before


def test_a_checkpoint_that_cannot_start_the_training_is_refused_before_anything_is_preprocessed(tmp_path):
    data = make_decathlon(tmp_path / "data", cases=5)
    bundle = bundles.copy("mednext_s_k3", tmp_path)
    run = BundleRunner(bundle, data, tmp_path)
    other = make_member("mednext_b_k3", tmp_path / "other")
    for option, message in (
        (("--pretrained", str(other)), "UpKern from .*model.pt: the checkpoint .MedNeXt"),
        (("--pretrained", "mednext_l_k3"), "pretrained: mednext_l_k3 has no weights"),
        (("--pretrained", str(other), "--upkern_checkpoint", "k3.pt"), "a training starts from one of them"),
    ):
        done = run("training", "train", options=option, check=False)
        assert done.returncode == 1 and re.search(message, done.stderr)
        assert not (bundle / "cache").exists() and not (bundle / "models" / "last.pt").exists()


def test_a_page_without_the_marks_is_named():
    with pytest.raises(ValueError, match="lacks the lines '<!-- weights -->'"):
        replace_weights_section("# Title\n", "text")


@pytest.mark.slow
def test_a_bundle_is_trained_evaluated_and_released_by_the_documented_commands(tmp_path):
    """In a bundle that has released weights of another task, from which it starts and which it keeps."""
    data = make_decathlon(tmp_path / "data", cases=5)
    old = make_member("mednext_s_k3", tmp_path / "old", **SETTINGS, out_channels=5)
    write_state(old)
    write_tables(old / "eval", old / "models" / "model.pt", data)
    bundle = bundles.release(old, tmp_path / "bundle", half=False)
    kept = (bundle / "models" / "model.pt").read_bytes()
    run = BundleRunner(bundle, data, tmp_path)
    steps = ("--epochs", "1", "--iterations_per_epoch", "2")
    done = run("training", "train", options=(*steps, "--pretrained", str(bundle)))
    assert "tensors copied, 0 kernels interpolated; skipped: out_0.conv_out.weight" in done.stdout + done.stderr
    assert (bundle / "models" / "pretrained.pt").read_bytes() == kept
    trained = read_settings(bundle / "models" / "model.pt")
    assert trained["initialized_from"]["is_transfer"] and trained["out_channels"] == 3
    run("evaluating", "train", "evaluate")
    target = tmp_path / "released"
    options = {"base_channels": 4}

    def evaluate(checkpoint: Path, folder: Path) -> None:
        run("evaluating", "train", "evaluate", options=("--checkpoint", str(checkpoint), "--output_dir", str(folder)))

    bundles.release(bundle, target, evaluate=evaluate)
    network = monai.bundle.load("released", bundle_dir=tmp_path, device="cpu", net_override=options)
    assert network.out_0.conv_out.weight.shape[1] == 3
    page = (target / "docs" / "README.md").read_text()
    assert f"started from the checkpoint with SHA-256 `{trained['initialized_from']['sha256']}` of another task" in page
