"""The option ``compile``: the same results and checkpoints, resumed and started with it and without it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from torch._dynamo.utils import counters

from mednext_monai import Predictor, bundles
from mednext_monai.cli import main
from mednext_monai.errors import diagnosis
from mednext_monai.networks import create_mednext, using_backend
from mednext_monai.planning import plan
from mednext_monai.weights import read_state_dict, upkern

EAGER = {"compile": "true", "compiler::backend": "eager"}  # traced as for any backend, then run as it is


@pytest.fixture(autouse=True)
def as_compiled():
    """Compute what is not compiled with the modules that would be, and forget what another test has compiled."""
    torch.compiler.reset()
    counters.clear()
    with using_backend("plain"):
        yield
    torch.compiler.reset()


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected) and not any("_orig_mod" in name for name in found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def assert_compiled(is_compiled: bool) -> None:
    """Assert that graphs have been compiled since the last call, and that none was broken; or that nothing was."""
    assert bool(counters["stats"]["unique_graphs"]) is is_compiled and not counters["graph_break"]
    counters.clear()


@pytest.mark.parametrize(
    ("first", "second"), [(EAGER, {}), pytest.param({}, EAGER, marks=pytest.mark.slow)], ids=["begun", "resumed"]
)
def test_a_training_begun_with_it_goes_on_without_it_and_the_other_way_round(train, tmp_path, first, second):
    expected = train("plain", epochs=2)
    assert_compiled(False)
    train("compiled", epochs=1, **first)
    assert_compiled(bool(first))
    assert_same(train("compiled", epochs=2, resume=True, **second), expected)
    assert_compiled(bool(second))
    for file in ("model.pt", "model_best.pt"):
        assert_same(read_state_dict(tmp_path / "compiled" / file), read_state_dict(tmp_path / "plain" / file))


@pytest.mark.parametrize("setting", ["expansion", pytest.param("block", marks=pytest.mark.slow)])
def test_what_is_computed_again_changes_nothing_compiled_or_not(train, setting):
    short = {"epochs": 1, "pseudo_dice_batches": 0, "val_interval": 9}
    expected = train("off", **short)
    for name, options in (("plain", {}), ("compiled", EAGER)):
        assert_same(train(name, gradient_checkpointing=setting, **short, **options), expected)
        assert_compiled(name == "compiled")


@pytest.mark.parametrize(
    ("option", "kernel_size"), [("upkern_checkpoint", 5), pytest.param("pretrained", 3, marks=pytest.mark.slow)]
)
def test_a_compiled_training_starts_from_other_weights(train, tmp_path, option, kernel_size):
    source = make_member("mednext_s_k3", tmp_path / "source", seed=3) / "models" / "model.pt"
    unchanged = {"learning_rate": 1e-12, "iterations_per_epoch": 1, "kernel_size": kernel_size}
    short = {"epochs": 1, "pseudo_dice_batches": 0, "val_interval": 9}
    found = train("started", **short, **unchanged, **{option: str(source)}, **EAGER)
    assert_compiled(True)
    network = create_mednext("S", kernel_size, out_channels=3, deep_supervision=True, base_channels=4)
    upkern(read_state_dict(source), network)
    for name, tensor in network.state_dict().items():
        if option == "upkern_checkpoint" or not name.startswith("out_"):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_prediction_is_the_same_also_by_several_networks(dataset, tmp_path):
    folder = make_member("mednext_s_k3", tmp_path)
    other = make_member("mednext_b_k5", tmp_path / "other", seed=1, patch_size=[48, 32, 32])
    file = folder / "configs" / "inference.json"
    content = json.loads(file.read_text())
    content["compiler"]["backend"] = "eager"
    file.write_text(json.dumps(content))
    image = nib.load(dataset / "imagesTs" / "box_9.nii.gz")
    for options in ({}, {"ensemble": [str(other)]}):
        options = {"mirror": False, "device": "cpu", **options}
        expected, found = (
            np.asarray(Predictor(folder, **options, compile=compile)(image).dataobj) for compile in (False, True)
        )
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) == 3


def test_a_missing_compiler_is_said_before_the_data_set_is_looked_for(train, monkeypatch, tmp_path):
    def missing(function, **arguments):
        raise RuntimeError("there is none")

    monkeypatch.setattr("torch.compile", missing)
    with pytest.raises(Exception) as error:  # MONAI wraps what a component raises
        train("not written", epochs=1, dataset_dir=str(tmp_path), compile=True)
    assert str(diagnosis(error.value)).startswith(
        "compile: torch.compile does not work on this computer, RuntimeError: "
    )
    assert not (tmp_path / "not written").exists()


# --- as a user types it, with the compiler of torch.compile ----------------------------------------------------------


def typed(command: str, bundle: Path, *arguments: str) -> None:
    """Type a command with a tiny network; it must succeed."""
    options = ["--patch_size", "32", "--network_def::base_channels", "4", "--num_workers", "0", "--device", "cpu"]
    assert main([command, str(bundle), *arguments, *options]) == 0


@pytest.mark.slow
def test_the_commands_compile_and_their_results_are_those_without(dataset, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MEDNEXT_BACKEND", "plain")
    images, found = str(dataset / "imagesTs"), {}
    task = ["--dataset_dir", str(dataset), "--out_channels", "3"]
    short = ["--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "1", "--pseudo_dice_batches", "1"]
    for name, option in (("plain", "false"), ("compiled", "true")):
        bundle = bundles.copy("mednext_s_k3", tmp_path / name)
        added = ["--compile", option, "--gradient_checkpointing", "expansion"]
        typed("train", bundle, *task, *short, "--seed", "0", *added)
        typed("evaluate", bundle, *task, "--mirror", "false", *added)
        typed("predict", bundle, images, str(tmp_path / name / "out"), "--mirror", "false", "--compile", option)
        printed = capfd.readouterr()
        assert printed.out.count(f"--compile {option.capitalize()}") == 3
        assert ("the optimized implementation that runs without" in printed.out + printed.err) is (name == "compiled")
        segmentation = np.asarray(nib.load(tmp_path / name / "out" / "box_9.nii.gz").dataobj)
        found[name] = (read_state_dict(bundle / "models" / "model.pt"), segmentation)
    for weight, expected in found["plain"][0].items():
        torch.testing.assert_close(found["compiled"][0][weight], expected, rtol=1e-3, atol=1e-3)
    assert (found["compiled"][1] != found["plain"][1]).mean() < 0.01


@pytest.mark.slow
def test_without_a_compiler_one_sentence_says_so(tmp_path, capfd, monkeypatch, dataset):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    bundle = make_member("mednext_s_k3", tmp_path)
    assert main(["predict", str(bundle), str(dataset / "imagesTs"), str(tmp_path / "out"), "--compile", "true"]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "mednext: error: compile: torch.compile does not work on this computer, InvalidCxxCompiler: "
    )
    assert last.endswith("--compile false runs without it.")


@pytest.mark.slow
def test_several_processes_compile_and_write_the_same_checkpoint(run_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MEDNEXT_BACKEND", "plain")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29519", "-m")
    short = ("--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "1", "--batch_dice", "false")
    states = {}
    for name, options in (("plain", ()), ("compiled", ("--compile", "true", "--compiler::backend", "eager"))):
        options = (*short, "--gradient_checkpointing", "block", *options, "--ckpt_dir", str(tmp_path / name))
        run_bundle("training", "train", "multi_gpu_train", options=options, launcher=launcher)
        states[name] = torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        options = ("--mirror", "false", *options[-2:], "--output_dir", str(tmp_path / name / "eval"))
        run_bundle("evaluating", "train", "multi_gpu_train", "evaluate", options=options, launcher=launcher)
    assert_same(states["compiled"], states["plain"])
    tables = [(tmp_path / name / "eval" / "metrics.csv").read_text() for name in ("plain", "compiled")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_plan_as_overlay_gives_the_network_the_setting_of_its_variant(run_bundle, dataset, tmp_path):
    task = tmp_path / "task.json"
    plan(dataset, task, 32, processes=1, progress=False, report=False, gpu_memory=1.5)
    content = json.loads(task.read_text())
    assert set(content["gradient_checkpointing"]) >= {"S_k3", "L_k5"}
    short = ("--epochs", "1", "--iterations_per_epoch", "1", "--val_interval", "9")
    run_bundle("training", "train", options=short, overlay=task)
    content["gradient_checkpointing"]["S_k3"] = "some"
    task.write_text(json.dumps(content))
    result = run_bundle("training", "train", options=short, overlay=task, check=False)
    assert "gradient_checkpointing must be true, false, 'block' or 'expansion', or a dictionary" in result.stderr
