"""What a checkpoint says about its training: it stays a plain state dict, and inference uses it or refuses."""

from __future__ import annotations

import json

import monai
import pytest
import torch
from helpers.checkpoints import TRAINED
from helpers.datasets import make_boxes, make_regions

from mednext_monai.data import training_cases
from mednext_monai.networks import create_mednext
from mednext_monai.weights import (
    carry_settings,
    check_fold,
    convert,
    load_weights,
    read_settings,
    task_settings,
    training_settings,
    write_checkpoint,
)
from mednext_monai.weights.settings import KEY, attach_settings

CT = [{"mean": 40.0, "sd": 90.0, "p005": -160.0, "p995": 240.0}]
NOTHING = dict.fromkeys(
    ("in_channels", "out_channels", "spacing", "orientation", "normalization", "intensity", "patch_size")
)
STATED = {
    **NOTHING,
    "out_channels": 3,
    "spacing": [1, 1, 2],
    "normalization": ["CT"],
    "intensity": CT,
    "patch_size": 64,
    "orientation": "RAS",
}


def small(**options):
    return create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=2, **options)


@pytest.fixture
def boxes(tmp_path):
    return make_boxes(tmp_path / "boxes")


@pytest.fixture
def trained(tmp_path, boxes):
    """A checkpoint of fold 0 of six cases, trained as STATED says."""
    network, cases = small(), training_cases(str(boxes), 0)
    carry_settings(network, training_settings(task_settings(STATED), "S", 3, 0, cases, boxes))
    write_checkpoint(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_for_a_training_what_is_not_stated_is_as_published():
    settings = task_settings(NOTHING)
    assert settings == {
        "in_channels": 1,
        "out_channels": 2,
        "spatial_dims": 3,
        "slice_axis": None,
        "spacing": [1.0, 1.0, 1.0],
        "orientation": None,
        "normalization": ["zscore"],
        "intensity": {},
        "patch_size": [128, 128, 128],
        "regions": None,
        "ignore_label": None,
    }
    assert task_settings({**NOTHING, "spacing": 2})["spacing"] == [2, 2, 2]
    assert task_settings({**NOTHING, "in_channels": 2})["normalization"] == ["zscore", "zscore"]


def test_for_a_training_on_slices_what_is_not_stated_is_as_the_authors_plan_it():
    settings = task_settings({**NOTHING, "spatial_dims": 2})
    assert (settings["slice_axis"], settings["patch_size"], settings["spacing"]) == (2, [512, 512], [1.0, 1.0, None])
    stated = {**NOTHING, "spatial_dims": 2, "slice_axis": 0, "patch_size": 64, "spacing": [None, 1, 1]}
    settings = task_settings(stated)
    assert (settings["slice_axis"], settings["patch_size"], settings["spacing"]) == (0, [64, 64], [None, 1, 1])


def test_a_checkpoint_from_before_slices_is_of_volumes(tmp_path):
    older = {key: value for key, value in TRAINED.items() if key not in ("spatial_dims", "slice_axis")}
    torch.save(attach_settings({"w": torch.zeros(1)}, older), tmp_path / "model.pt")
    settings = task_settings(NOTHING, tmp_path / "model.pt")
    assert (settings["spatial_dims"], settings["slice_axis"]) == (3, None)
    with pytest.raises(ValueError, match="spatial_dims is 2, but .* was trained with 3"):
        task_settings({**NOTHING, "spatial_dims": 2}, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer up to 10000, got 0"),
        ({"out_channels": "3"}, "out_channels must be a positive integer up to 32768, got '3'"),
        ({"in_channels": 2**40}, "in_channels must be a positive integer up to 10000, got 1099511627776"),
        ({"out_channels": 2**40, "regions": {"a": [1]}}, "out_channels must be a positive integer up to 32768, got"),
        ({"spacing": [1, 1]}, "spacing must be three positive numbers"),
        ({"normalization": ["CT"]}, "intensity of channel 0"),
        ({"in_channels": 2, "normalization": ["zscore"]}, "normalization lists 1 channels"),
        ({"patch_size": 100}, "patch_size must be one or three positive multiples of 16, got 100"),
    ],
)
def test_an_invalid_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        task_settings({**NOTHING, **change})


def test_a_checkpoint_with_settings_is_a_plain_state_dict_for_pytorch_and_monai(trained, boxes):
    content = torch.load(trained, weights_only=True)
    network = small()
    assert list(content) == list(network.state_dict()) and all(map(torch.is_tensor, content.values()))
    network.load_state_dict(content, strict=True)
    monai.networks.copy_model_state(network, content)
    evaluator = monai.engines.SupervisedEvaluator("cpu", [], network)
    monai.handlers.CheckpointLoader(str(trained), {"model": network}, strict=True)(evaluator)
    load_weights(trained, torch.nn.DataParallel(network))
    found = read_settings(trained)
    assert found["fold"] == 0 and found["labels"] == ["background", "outer", "inner"] and found["variant"] == "S"
    assert found["training_cases"].startswith("4 cases, ") and found["channel_names"] == ["MRI"]
    assert "box_" not in json.dumps(found)  # hashes, not ids


def test_every_state_dict_of_the_network_carries_them_wrapped_or_not(boxes):
    network = small()
    carry_settings(torch.nn.DataParallel(network), {"fold": 3})
    for module in (network, torch.nn.DataParallel(network)):
        assert module.state_dict()._metadata[KEY] == {"fold": 3}
    assert KEY not in small().state_dict()._metadata


def test_inference_takes_them_from_the_checkpoint(trained, caplog):
    with caplog.at_level("INFO"):
        settings = task_settings(NOTHING, trained)
    assert settings == task_settings(STATED)
    assert task_settings(STATED, trained) == settings
    assert f"settings of {trained}: in_channels 1, out_channels 3, spacing [1.0, 1.0, 2.0]" in caplog.text
    assert "does not say" not in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("in_channels", 2, "1"),
        ("out_channels", 2, "3"),
        ("spacing", [1.0, 1.0, 1.0], r"\[1.0, 1.0, 2.0\]"),
        ("orientation", "LPS", "'RAS'"),
        ("normalization", ["zscore"], r"\['CT'\]"),
        ("intensity", [{**CT[0], "mean": 41.0}], r"\{0: \{'mean': 40.0"),
    ],
)
def test_a_stated_setting_that_contradicts_the_checkpoint_is_refused(trained, key, value, found):
    with pytest.raises(ValueError, match=rf"^{key} is .*, but .*model.pt was trained with {found}.*Leave out {key}"):
        task_settings({**NOTHING, key: value}, trained)


def test_another_patch_size_is_the_size_of_the_windows(trained, caplog):
    with caplog.at_level("INFO"):
        assert task_settings({**NOTHING, "patch_size": 32}, trained)["patch_size"] == [32, 32, 32]
    assert "windows of [32, 32, 32] voxels; trained on patches of [64, 64, 64]" in caplog.text


def test_a_checkpoint_from_elsewhere_says_what_is_assumed(tmp_path, caplog):
    torch.save(dict(small().state_dict()), tmp_path / "other.pt")
    settings = task_settings({**NOTHING, "out_channels": 3, "patch_size": 32}, tmp_path / "other.pt")
    assert settings == {**task_settings(NOTHING), "out_channels": 3, "patch_size": [32, 32, 32]}
    assert f"{tmp_path / 'other.pt'} does not say how it was trained. Assumed, because they are not" in caplog.text
    assert "stated: in_channels 1, spacing [1.0, 1.0, 1.0], orientation None, normalization ['zscore']." in caplog.text


@pytest.mark.parametrize("change", [{"spacing": "$print('pwned')"}, {"fold": "x"}, {"training_ids": None}, "text"])
def test_settings_that_are_invalid_are_an_error_that_names_the_file(trained, change):
    content = torch.load(trained, weights_only=True)
    content._metadata[KEY] = {**content._metadata[KEY], **change} if isinstance(change, dict) else change
    torch.save(content, trained)
    with pytest.raises(ValueError, match="model.pt: the settings that it was trained with are invalid"):
        task_settings(NOTHING, trained)


def test_conversion_keeps_them_unless_it_reverses_axes(trained, tmp_path):
    torch.save({"model": torch.load(trained, weights_only=True), "epoch": 3}, tmp_path / "last.pt")
    convert(tmp_path / "last.pt", tmp_path / "kept.pt")
    assert read_settings(tmp_path / "kept.pt") == read_settings(trained)
    convert(trained, tmp_path / "reversed.pt", reverse_axes=True)
    assert read_settings(tmp_path / "reversed.pt") is None


def test_a_checkpoint_is_not_evaluated_on_its_own_training_cases(trained, boxes):
    def cases(fold, **options):
        return training_cases(str(boxes), fold, "validation", **options)

    check_fold(trained, 0, cases(0))
    check_fold(trained, "0", cases(0))
    way = r"Evaluate its own fold with --fold 0, or name a checkpoint of fold {} with --checkpoint\."
    for fold in (1, "all"):
        with pytest.raises(
            ValueError, match=rf"was trained on fold 0 and cannot be evaluated on fold {fold}: .*" + way.format(fold)
        ):
            check_fold(trained, fold, cases(fold))
    ids = [case["id"] for case in training_cases(str(boxes), "all")]
    others = [{"train": ids[3:], "val": ids[:3]}]
    with pytest.raises(
        ValueError, match=r"trained on another fold 0 .*3 of the 3 cases .*box_0.*: name its plan after"
    ):
        check_fold(trained, 0, cases(0, splits=others))


def test_other_cases_may_be_evaluated_whatever_their_fold(trained):
    check_fold(trained, "all", [{"id": "another data set"}])


def test_a_training_on_all_cases_is_evaluated_on_them_with_a_warning(tmp_path, boxes, caplog):
    network, cases = small(), training_cases(str(boxes), "all")
    carry_settings(network, training_settings(task_settings(STATED), "S", 3, "all", cases, boxes))
    write_checkpoint(network.state_dict(), tmp_path / "all.pt")
    check_fold(tmp_path / "all.pt", "all", cases)
    assert "was trained on fold all: 6 of the 6 cases to evaluate are its training cases" in caplog.text
    with pytest.raises(ValueError, match="was trained on fold all and cannot be evaluated on fold 0"):
        check_fold(tmp_path / "all.pt", 0, cases[:2])


REGIONS = {"all": [1, 2], "inner": [2]}


def test_regions_and_ignore_label_are_carried_and_those_of_other_labels_may_be_stated(tmp_path, boxes):
    network, cases = small(), training_cases(str(boxes), 0)
    task = task_settings({**STATED, "regions": REGIONS, "ignore_label": 3})
    carry_settings(network, training_settings(task, "S", 3, 0, cases, boxes))
    write_checkpoint(network.state_dict(), tmp_path / "model.pt")
    settings = task_settings(NOTHING, tmp_path / "model.pt")
    assert settings["regions"] == REGIONS and settings["ignore_label"] == 3
    stated = {**NOTHING, "regions": {"one": [1]}, "ignore_label": 7}
    settings = task_settings(stated, tmp_path / "model.pt")
    assert settings["regions"] == {"one": [1]} and settings["ignore_label"] == 7


def test_a_checkpoint_from_before_there_were_regions_has_none(tmp_path, boxes):
    network, cases = small(), training_cases(str(boxes), 0)
    settings = training_settings(task_settings(STATED), "S", 3, 0, cases, boxes)
    carry_settings(network, {key: value for key, value in settings.items() if key not in ("regions", "ignore_label")})
    write_checkpoint(network.state_dict(), tmp_path / "model.pt")
    found = task_settings(NOTHING, tmp_path / "model.pt")
    assert found["regions"] is None and found["ignore_label"] is None and found["out_channels"] == 3


def test_without_a_plan_the_regions_are_those_of_the_data_set(tmp_path):
    regions = make_regions(tmp_path / "regions", 2)
    task = task_settings({**STATED, "out_channels": 4}, dataset_dir=regions)
    settings = training_settings(task, "S", 3, 0, [], regions)
    assert settings["ignore_label"] == 4
    assert settings["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "center": [3]}
    assert settings["labels"] == ["background", "whole without core", "core without center", "center"]


def test_what_is_stated_or_trained_comes_before_the_data_set(tmp_path, boxes):
    regions = make_regions(tmp_path / "regions", 2)
    stated = {**STATED, "out_channels": 4, "regions": {"one": [1]}, "ignore_label": 7}
    found = task_settings(stated, dataset_dir=regions)
    assert (found["regions"], found["ignore_label"]) == ({"one": [1]}, 7)
    network, cases = small(), training_cases(str(boxes), 0)
    write_checkpoint(network.state_dict(), tmp_path / "other.pt")
    trained = task_settings({**STATED, "out_channels": 4})
    carry_settings(network, training_settings(trained, "S", 3, 0, cases, boxes))
    write_checkpoint(network.state_dict(), tmp_path / "model.pt")
    for checkpoint in (tmp_path / "model.pt", tmp_path / "other.pt"):  # which know of no ignored voxels
        found = task_settings({**NOTHING, "out_channels": 4}, checkpoint, regions)
        assert found["ignore_label"] == 4 and list(found["regions"]) == ["whole", "core", "center"]
    nowhere = task_settings(STATED, dataset_dir=tmp_path / "nowhere")
    assert nowhere == task_settings(STATED)
    with pytest.raises(ValueError, match=r"out_channels is 5, but in .*dataset.json the label 4 is 'ignore'"):
        task_settings({**STATED, "out_channels": 5}, dataset_dir=regions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ignore_label": 2}, "ignore_label must be an integer above the labels of the classes, 3 to 255, got 2"),
        ({"ignore_label": 3.0}, "ignore_label must be an integer .*, got 3.0"),
        ({"ignore_label": 256}, "ignore_label must be an integer .*, got 256"),
        ({"regions": {"all": [1, 3]}}, r"regions: the region 'all' contains \[3\]; the classes are \[1, 2\]"),
        ({"regions": {"all": 1}}, "regions must be lists of labels by the name of the region, got"),
        ({"regions": ["all"]}, "regions must be lists of labels by the name of the region, got"),
    ],
)
def test_invalid_regions_and_ignore_labels_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        task_settings({**STATED, **change})
