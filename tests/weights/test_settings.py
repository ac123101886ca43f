"""What a checkpoint says about its training: it stays a plain state dict, and inference uses it or refuses."""

from __future__ import annotations

import json

import monai
import pytest
import torch
from helpers.datasets import make_boxes

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
from mednext_monai.weights.settings import KEY

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"out_channels": "3"}, "out_channels must be a positive integer, got '3'"),
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
