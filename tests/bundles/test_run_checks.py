"""A run of a bundle begins with a look at its whole config, through whichever door the config came in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow, create_workflow, run

from mednext_monai import bundles
from mednext_monai.errors import diagnosis

CONFIGS = bundles.path("mednext_s_k3") / "configs"


def begin(*configs, run_id="run", **overrides) -> ConfigWorkflow:
    """Begin a run as ``monai.bundle run`` does."""
    files = [str(CONFIGS / f"{config}.json") if isinstance(config, str) else str(config) for config in configs]
    workflow = ConfigWorkflow(files, run_id=run_id, logging_file=False, **overrides)
    workflow.initialize()
    return workflow


def complaint(*configs, **overrides) -> str:
    with pytest.raises(Exception) as caught:
        begin(*configs, **overrides)
    sentence = diagnosis(caught.value)
    assert sentence is not None, caught.value
    return sentence


def overlay(folder: Path, **content) -> Path:
    file = folder / "overlay.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("config", "run_id"), [("train", "training"), ("train", "run"), ("inference", "inferring"), ("inference", "run")]
)
def test_the_configs_as_they_are_begin(config, run_id):
    begin(config, run_id=run_id)


def test_overlays_of_the_bundle_and_of_a_user_begin(tmp_path):
    begin("train", "evaluate", run_id="evaluating")
    own = overlay(tmp_path, my_weights=[1, 2], loss="$@my_weights", looking=["$@loss"], _comment="mine")
    assert begin("train", own, run_id="looking").run() == [[1, 2]]
    begin("train", overlay(tmp_path, **{"train::trainer::max_epochs": 3}))


@pytest.mark.parametrize(
    ("config", "typed", "meant"),
    [
        ("train", "epoch", "epochs"),
        ("train", "dataset_dirr", "dataset_dir"),
        ("train", "learning-rate", "learning_rate"),
        ("train", "meta_fle", "meta_file"),
        ("inference", "inputs", "input"),
        ("inference", "outputdir", "output_dir"),
    ],
)
def test_a_misspelled_option_is_an_error_with_the_nearest_one(config, typed, meant):
    assert f"there is no option {typed}" in complaint(config, **{typed: 1})
    assert f"Did you mean {meant}?" in complaint(config, **{typed: 1})


def test_an_option_of_another_workflow_is_said_to_have_no_effect(caplog):
    begin("inference", epochs=5)
    assert "epochs is an option of another workflow of the bundle and has no effect on this one." in caplog.text


def test_a_misspelled_key_of_an_overlay_or_a_plan(tmp_path):
    assert "Did you mean batch_size?" in complaint("train", overlay(tmp_path, batchsize=4))
    plan = {"_plan_": {}, "labels": ["a", "b"], "channel_names": ["CT"], "batch_dice": True}
    begin("inference", overlay(tmp_path, **plan))  # batch_dice is of no use there, but a plan is for all workflows
    assert "Did you mean spacing?" in complaint("inference", overlay(tmp_path, **plan, spacings=[1, 1, 1]))


def test_a_misspelled_option_in_python():
    with pytest.raises(RuntimeError) as caught:
        run(config_file=str(CONFIGS / "inference.json"), logging_file=False, inputs="X")
    assert "Did you mean input?" in str(diagnosis(caught.value))


@pytest.mark.parametrize(("run_id", "found"), [("train", "is not a run"), ("trainin", "is not in the config")])
def test_a_run_id_that_is_no_run_is_an_error_that_lists_the_runs(run_id, found):
    sentence = complaint("train", run_id=run_id)
    assert sentence == f"run_id '{run_id}' {found}. Did you mean training? The runs are run, training."


def test_a_plan_before_the_config_is_an_error(tmp_path):
    plan = overlay(tmp_path, out_channels=4, _plan_={})
    assert begin("train", plan).parser["out_channels"] == 4
    for order in ((plan, "train"), (overlay(tmp_path, epochs=3), "train")):
        sentence = complaint(*order)
        assert "config_file must name the bundle's train.json or inference.json first" in sentence


@pytest.mark.parametrize(
    ("config", "option", "value", "message"),
    [
        ("train", "epochs", 0, "epochs must be an integer of at least 1, got 0."),
        ("train", "epochs", "ten", "epochs must be an integer of at least 1, got 'ten'."),
        ("train", "epochs", 2.5, "epochs must be an integer of at least 1, got 2.5."),
        ("train", "learning_rate", "1e-3x", "learning_rate must be a number above 0, got '1e-3x'."),
        ("train", "learning_rate", float("nan"), "learning_rate must be a number above 0, got nan."),
        ("train", "fold", -1, "fold must be 0, 1, 2, ... or 'all', or null, got -1."),
        ("train", "best_by", "dice", "best_by must be 'volume' or 'patches', got 'dice'."),
        ("train", "seed", True, "seed must be an integer of at least 0, or null, got True."),
        ("train", "resume", "maybe", "resume must be true or false, got 'maybe'."),
        ("train", "device", "gpu", "device must be a device of this computer"),
        ("train", "device", "cuda:99", "device must be a device of this computer"),
        (
            "train",
            "patch_size",
            [64] * 4,
            "patch_size must be one or three (in 2D one or two) positive multiples of 16, or null, got",
        ),
        ("train", "normalization", ["z"], "normalization must be a list with one of CT, masked_CT, zscore"),
        ("train", "orientation", "RAX", "orientation must be axis codes such as 'RAS', or null, got 'RAX'."),
        ("train", "spacing", [1, 1, 0], "spacing must be one or three positive numbers (mm), or null, got [1, 1, 0]."),
        ("inference", "overlap", 1, "overlap must be a number of at least 0 and below 1, got 1."),
        ("inference", "mirror", "off", "mirror must be true or false, got 'off'."),
        ("inference", "input", ["a", "b"], "input must be a path, or null, got ['a', 'b']."),
        ("inference", "out_channels", 1, "out_channels must be an integer of at least 2"),
    ],
)
def test_options_are_checked_before_any_file_is_read(config, option, value, message):
    assert message in complaint(config, **{option: value}, dataset_dir="nowhere")


@pytest.mark.parametrize("name", ["a#b", "a #1 @home", "a::b", "100%"])
def test_a_path_keeps_the_characters_that_mean_something_to_monai(tmp_path, name):
    files = [str(CONFIGS / "train.json"), str(overlay(tmp_path, looking=["$@dataset_dir"]))]
    options = {"run_id": "looking", "logging_file": False, "dataset_dir": f"/data/{name}"}
    workflow = create_workflow(config_file=files, **options)
    assert workflow.run() == [f"/data/{name}"]


@pytest.mark.parametrize(("typed", "meant"), [("false", False), ("True", True), (False, False)])
def test_false_is_false_wherever_a_path_hands_it(typed, meant):
    files = str(CONFIGS / "train.json")
    workflow = create_workflow(config_file=files, logging_file=False, **{"train::trainer::amp": typed})
    assert workflow.parser["train::trainer::amp"] is meant


def test_the_diagnosis_is_the_last_thing_on_the_screen(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "inference.json")]
    result = subprocess.run([*command, "--mirror", "off"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr  # still there, above
    assert result.stderr.endswith("\n\nmednext: error: mirror must be true or false, got 'off'.\n")


@pytest.mark.parametrize("option", ["bundle_root", "dataset_dir", "ckpt_dir", "output_dir", "input", "checkpoint"])
def test_a_folder_may_have_a_number_as_its_name(tmp_path, option):
    """python-fire reads `--input 2024` as a number; an overlay may hold one."""
    for workflow in (begin("inference", **{option: 2024}), begin("inference", overlay(tmp_path, **{option: 2024}))):
        assert workflow.parser.get_parsed_content(option) == "2024"
    folders = begin("train", bundle_root=2024, cache_dir=7).parser
    assert folders.get_parsed_content("ckpt_dir") == "2024/models" and folders.get_parsed_content("cache_dir") == "7"


@pytest.mark.parametrize(("value", "typed"), [(2024.1, "2024.10"), (202410, "2024_10"), (("a", "b"), "a,b")])
def test_a_name_that_is_also_a_python_value_is_what_was_typed(monkeypatch, value, typed):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--input", typed])
    assert begin("inference", input=value).parser.get_parsed_content("input") == typed


@pytest.mark.parametrize("value", [2024.1, True, ("a", "b")])
def test_a_name_that_cannot_be_recovered_is_refused(value):
    assert "output_dir must be a path, got" in complaint("train", output_dir=value)
    assert "with its folder, such as ./2024.10" in complaint("train", output_dir=value)
