"""Weights that a bundle is released with: recognized by content, never taken for those of the user, never lost."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers.checkpoints import release_weights

from mednext_monai import bundles
from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.handlers import check_start
from mednext_monai.weights import find_pretrained, set_aside, starting_point, task_settings
from mednext_monai.weights.released import is_released, is_trained, read_record

STATED = dict.fromkeys(("in_channels", "out_channels", "spacing", "orientation", "patch_size", "normalization"))


@pytest.fixture
def models(tmp_path):
    """A folder of models with released weights."""
    release_weights(tmp_path / "models")
    return tmp_path / "models"


def test_only_the_file_that_the_record_describes_is_released(models):
    file = models / "model.pt"
    assert is_released(file) and not is_trained(file) and read_record(models)["precision"] == "float16"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not is_released(file) and is_trained(file)


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"sha256": 3}'])
def test_a_damaged_record_describes_nothing(models, record):
    (models / "model.json").write_text(record)
    assert not is_released(models / "model.pt") and is_trained(models / "model.pt")


def test_a_placeholder_and_a_missing_file_are_neither(tmp_path):
    (tmp_path / "model.pt").write_bytes(PLACEHOLDER)
    for file in (tmp_path / "model.pt", tmp_path / "none.pt"):
        assert not is_released(file) and not is_trained(file)


def test_a_training_may_start_beside_released_weights_but_not_beside_trained_ones(models):
    check_start(models, epochs=1)
    (models / "model.json").unlink()
    with pytest.raises(ValueError, match="model.pt exists and would be replaced"):
        check_start(models, epochs=1)


def test_released_weights_are_set_aside_and_trained_ones_stay(models):
    before = (models / "model.pt").read_bytes()
    set_aside(models, is_main_process=False)
    assert (models / "model.pt").read_bytes() == before
    set_aside(models)
    assert (models / "model.pt").read_bytes() == PLACEHOLDER and not (models / "model.json").exists()
    assert (models / "pretrained.pt").read_bytes() == before
    assert json.loads((models / "pretrained.json").read_text())["bytes"] == len(before)
    torch.save({"weight": torch.ones(1)}, models / "model.pt")
    mine = (models / "model.pt").read_bytes()
    set_aside(models)
    assert (models / "model.pt").read_bytes() == mine and (models / "pretrained.pt").read_bytes() == before


def test_pretrained_weights_are_found_by_file_folder_and_name(models, monkeypatch):
    assert find_pretrained(models / "model.pt") == str(models / "model.pt")
    assert find_pretrained(models.parent) == str(models / "model.pt")
    monkeypatch.setattr("mednext_monai.weights.released.path", lambda name: models.parent)
    assert find_pretrained("mednext_b_k3") == str(models / "model.pt")
    set_aside(models)
    assert find_pretrained(models.parent) == str(models / "pretrained.pt")


@pytest.mark.parametrize(
    ("name", "found"), [("mednext_m_k3", "has no weights"), ("nowhere", "does not exist"), ("", "has no weights")]
)
def test_a_bundle_without_weights_is_refused_and_those_that_have_some_are_named(name, found):
    message = f"pretrained: {name} {found}; allowed are .* or the name of one: .*mednext_s_k3"
    with pytest.raises(FileNotFoundError, match=message):
        find_pretrained(name)


def test_a_training_starts_from_one_checkpoint(models):
    file = str(models / "model.pt")
    assert starting_point(None, None) == (None, False)
    assert starting_point(file, None) == (file, False)
    assert starting_point(None, models.parent) == (file, True)
    assert starting_point(None, "gone", resume=True) == (None, True)
    with pytest.raises(ValueError, match=re.escape(f"upkern_checkpoint is {file} and pretrained is other")):
        starting_point(file, "other")


def test_channels_of_released_weights_are_those_of_a_network_about_which_nothing_else_is_known(models, tmp_path):
    released = {"in_channels": 2, "out_channels": 7}

    def channels(**others) -> tuple[int, int]:
        task = task_settings(**{"stated": STATED, "released": released, **others})
        return task["in_channels"], task["out_channels"]

    assert channels() == (2, 7)
    assert channels(checkpoint=tmp_path / "none.pt") == (2, 7)
    assert channels(checkpoint=models / "model.pt") == (1, 3)
    assert channels(stated={**STATED, "out_channels": 4}) == (2, 4)
    assert channels(dataset_dir=tmp_path) == (2, 7)
    (tmp_path / "dataset.json").write_text("{}")
    assert channels(dataset_dir=tmp_path) == (1, 2)


def test_names_of_the_package_that_have_weights_have_their_own():
    for name in bundles.names():
        file = bundles.path(name) / "models" / "model.pt"
        assert is_released(file) == bundles.has_weights(bundles.path(name))
