"""``mednext bundle new``: a bundle of the user's own task that is complete, verified, and runs without its plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
from helpers.bundles import TINY
from helpers.datasets import make_decathlon, make_regions

from mednext_monai import bundles
from mednext_monai.planning import plan


def load(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture
def task(tmp_path, dataset) -> Path:
    file = tmp_path / "task.json"
    plan(dataset, file, processes=1, progress=False, report=False)
    return file


def texts(item) -> list[str]:
    """Every text in a piece of JSON."""
    if isinstance(item, dict):
        return [text for pair in item.items() for value in pair for text in texts(value)]
    return [text for value in item for text in texts(value)] if isinstance(item, list) else [str(item)]


def test_a_new_bundle_inherits_nothing_of_weights_for_another_task(task, tmp_path):
    assert bundles.has_weights(bundles.path("mednext_s_k3"))
    bundle = bundles.new_bundle("S", 3, task, tmp_path / "boxes")
    assert {file.name for file in (bundle / "models").iterdir()} == {"labels.csv", "model.pt"}
    assert not bundles.has_weights(bundle) and "outer" in (bundle / "models" / "labels.csv").read_text()
    assert [file.name for file in (bundle / "docs").iterdir()] == ["README.md"]
    assert not {"weights", "eval_metrics"} & set(load(bundle / "configs" / "metadata.json"))
    for file in (bundle / "configs").iterdir():
        assert "Anterior" not in file.read_text(), file
    assert "Anterior" not in (bundle / "docs" / "README.md").read_text()


def test_a_new_bundle_has_the_gradient_checkpointing_that_its_plan_chose_for_the_variant(dataset, tmp_path):
    file = tmp_path / "task.json"
    plan(dataset, file, 128, processes=1, progress=False, report=False, gpu_memory=11)
    for variant, kernel_size, setting in (("s", 3, "expansion"), ("L", 5, "block")):
        bundle = bundles.new_bundle(variant, kernel_size, file, tmp_path / f"boxes_{variant}")
        for name in ("train", "inference"):
            assert load(bundle / "configs" / f"{name}.json")["gradient_checkpointing"] == setting
        assert load(bundle / "configs" / "task.json")["gradient_checkpointing"]["S_k3"] == "expansion"
    content = load(file)
    content["gradient_checkpointing"]["S_k3"] = "some"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"plan: .*task.json: gradient_checkpointing must be true, false, 'block'"):
        bundles.new_bundle("S", 3, file, tmp_path / "wrong")


def test_a_new_bundle_says_what_the_task_is_and_trains_loads_and_zips(tmp_path, task):
    bundle = bundles.new_bundle("s", 3, task, tmp_path / "deep" / "boxes_s")
    planned, generic = load(task), bundles.path("mednext_s_k3") / "configs"
    train, inference, metadata = (load(bundle / "configs" / f"{n}.json") for n in ("train", "inference", "metadata"))
    for key in ("dataset_dir", "in_channels", "out_channels", "spacing", "patch_size", "normalization", "intensity"):
        assert train[key] == inference[key] == planned[key]
    assert train["batch_dice"] is False and load(bundle / "configs" / "splits.json") == planned["splits"]
    assert train["splits"] == "$@bundle_root + '/configs/splits.json'"
    changed = {key for key, value in load(generic / "train.json").items() if train[key] != value}
    assert changed - {"released_task"} <= set(planned) and train["released_task"] is None
    for overlay in ("evaluate.json", "multi_gpu_train.json", "multi_gpu_inference.json", "inference_trt.json"):
        assert (bundle / "configs" / overlay).read_bytes() == (generic / overlay).read_bytes()
    assert load(bundle / "configs" / "task.json") == planned
    assert [t for t in texts(planned) if str(tmp_path) in t] == [planned["dataset_dir"]]

    assert metadata["name"] == "boxes_s" and metadata["task"] == "Segmentation of outer, inner (Boxes)"
    image, pred = (
        metadata["network_data_format"][side][key] for side, key in (("inputs", "image"), ("outputs", "pred"))
    )
    assert (image["num_channels"], image["channel_def"], image["modality"]) == (1, {"0": "MRI"}, "MRI")
    assert (pred["num_channels"], pred["channel_def"]) == (3, {"0": "background", "1": "outer", "2": "inner"})
    page, rest = (bundle / "docs" / "README.md").read_text().split("## Export")
    assert page.startswith("# boxes_s\n") and "2 inner" in page and "ckpt_export" in rest
    assert "task.json']" not in page and "out_channels 3" not in page and str(tmp_path) not in page + rest

    short = ["--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "9", *TINY]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json", *short]
    result = subprocess.run(
        command, cwd=bundle, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    narrow = {"base_channels": 4}
    network = monai.bundle.load("boxes_s", bundle_dir=bundle.parent, device="cpu", net_override=narrow)
    assert network.out_0.conv_out.weight.shape[1] == 3
    with zipfile.ZipFile(bundles.zip_bundle(bundle, tmp_path / "b.zip")) as archive:
        assert {"boxes_s/configs/task.json", "boxes_s/models/model.pt"} <= set(archive.namelist())


def test_channels_and_few_cases_reach_configs_and_metadata(tmp_path):
    """Two channels, one of them CT, and too few cases for folds."""
    plan(make_decathlon(tmp_path / "d", 3, ("CT", "PET")), tmp_path / "task.json", processes=1, progress=False)
    bundle = bundles.new_bundle("B", 5, tmp_path / "task.json", tmp_path / "two")
    train, metadata = load(bundle / "configs" / "train.json"), load(bundle / "configs" / "metadata.json")
    assert (train["fold"], train["normalization"]) == ("all", ["CT", "zscore"])
    assert len(load(bundle / "configs" / "splits.json")) == 3
    assert (train["variant"], train["kernel_size"], train["in_channels"]) == ("B", 5, 2)
    assert metadata["network_data_format"]["inputs"]["image"]["channel_def"] == {"0": "CT", "1": "PET"}
    assert "kernel size 5" in metadata["description"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"task.json is not a complete plan, it lacks labels"),
        (
            {"labels": ["background", "outer"]},
            r"task.json: labels must be a list of 3 string\(s\), as out_channels is 3",
        ),
        ({"in_channels": "1"}, r"task.json: in_channels must be a positive integer, got '1'"),
        ({"learning_rat": 0.1}, r"task.json: 'learning_rat' is neither a top-level key of train.json"),
        ({"kernel_size": 3}, r"task.json: kernel_size cannot be set by a plan"),
        ({"spacing": ["", 1, 1]}, "task.json: spacing must be one or three positive numbers"),
        ({"patch_size": [32, 32]}, "task.json: patch_size must be one or three positive multiples of 16"),
        ({"normalization": ["zscore", "CT"]}, "normalization must be a list of 1 string"),
        ({"intensity": [{"mean": "x"}], "normalization": ["CT"]}, "task.json: .*intensity"),
        ({"splits": [{"train": ["a"]}]}, "task.json: splits: fold 0"),
        ({"_plan_": {"cases": 3}}, "task.json: the cases in _plan_ must be a list, got 3"),
        ({"learning_rate": -1}, "task.json: learning_rate must be a number above 0"),
        ({"learning_rate": 0.0001}, None),
    ],
)
def test_a_plan_is_checked_key_by_key_and_nothing_is_left_behind(tmp_path, task, change, message):
    content = {**load(task), **change}
    task.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    if message is None:  # a setting of train.json that the user has added
        bundle = bundles.new_bundle("S", 3, task, tmp_path / "new")
        assert load(bundle / "configs" / "train.json")["learning_rate"] == 0.0001
        return
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        bundles.new_bundle("S", 3, task, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_required_setting_that_is_null_is_refused(tmp_path, task):
    task.write_text(json.dumps({**load(task), "spacing": None}))
    with pytest.raises(ValueError, match=r"task.json: spacing must be one or three positive numbers \(mm\), got None"):
        bundles.new_bundle("S", 3, task, tmp_path / "new")


def test_unknown_variants_files_and_full_folders_are_refused(tmp_path, task):
    with pytest.raises(
        ValueError, match="variant must be one of S, B, M, L and kernel_size one of 3, 5; got variant 'XL'"
    ):
        bundles.new_bundle("XL", 3, task, tmp_path / "new")
    with pytest.raises(ValueError, match="kernel_size 7"):
        bundles.new_bundle("S", 7, task, tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="the file .*other.json does not exist; create one with `mednext plan"):
        bundles.new_bundle("S", 3, tmp_path / "other.json", tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists already and is not empty"):
        bundles.new_bundle("S", 3, task, task.parent)
    task.write_text("{")
    with pytest.raises(ValueError, match="task.json: not valid JSON"):
        bundles.new_bundle("S", 3, task, tmp_path / "new")


def test_a_bundle_that_fails_its_check_does_not_appear(tmp_path, task, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("output channel number does not match")

    monkeypatch.setattr(monai.bundle, "verify_net_in_out", refuse)
    with pytest.raises(ValueError, match="does not match"):
        bundles.new_bundle("S", 3, task, tmp_path / "new")
    assert not [file for file in tmp_path.iterdir() if "new" in file.name]


def test_regions_and_ignore_label_reach_config_metadata_and_page(tmp_path):
    plan(make_regions(tmp_path / "d"), tmp_path / "task.json", processes=1, progress=False, report=False)
    bundle = bundles.new_bundle("S", 3, tmp_path / "task.json", tmp_path / "regions")
    train, metadata = load(bundle / "configs" / "train.json"), load(bundle / "configs" / "metadata.json")
    assert train["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "center": [3]} and train["ignore_label"] == 4
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "whole without core"
    assert metadata["label_classes"].endswith("3 center, 4 ignored")
    page = (bundle / "docs" / "README.md").read_text()
    assert "3 center, 4 ignored. Evaluated as the regions whole (1 + 2 + 3), core (2 + 3), center (3)." in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ignore_label": 2},
            "task.json: ignore_label must be an integer above the labels of the classes, 3 to 255, got 2",
        ),
        (
            {"regions": {"all": [1, 3]}},
            r"task.json: regions: the region 'all' contains \[3\]; the classes are \[1, 2\]",
        ),
        ({"regions": {"all": 1}}, "task.json: regions must be lists of labels by the name of the region, such as"),
    ],
)
def test_regions_and_ignore_label_of_a_plan_are_checked(tmp_path, task, change, message):
    task.write_text(json.dumps({**load(task), **change}))
    with pytest.raises(ValueError, match=message):
        bundles.new_bundle("S", 3, task, tmp_path / "new")
