"""A data set of regions with an ignore label, from its plan to its evaluation."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundles import TINY
from helpers.datasets import describe, make_regions
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from mednext_monai import bundles
from mednext_monai.cli import main
from mednext_monai.planning import plan
from mednext_monai.weights import read_settings

REGIONS = {"whole": [1, 2, 3], "core": [2, 3], "center": [3]}


@pytest.fixture
def task(tmp_path):
    plan(make_regions(tmp_path / "data"), tmp_path / "task.json", processes=1, progress=False, report=False)
    return tmp_path / "task.json"


@pytest.fixture
def config(tmp_path, task):
    """The config of a training with the plan and a tiny network."""
    parser = ConfigParser()
    folder = bundles.path("mednext_s_k3") / "configs"
    parser.read_config([str(folder / "train.json"), str(task)])
    changes = {"device": "cpu", "patch_size": 32, "num_workers": 0, "seed": 0, "pseudo_dice_batches": 1}
    parser.update({**changes, "bundle_root": str(tmp_path), "network_def::base_channels": 2, "progress_bar": False})
    return parser


def test_the_plan_reaches_every_part_of_a_training(config):
    task = config.get_parsed_content("task")
    assert (task["out_channels"], task["regions"], task["ignore_label"]) == (4, REGIONS, 4)
    assert config.get_parsed_content("loss").loss.ignore_label == 4
    for name in ("train::preprocessing", "validate_patches::preprocessing"):
        assert config.get_parsed_content(name).transforms[0].ignore_label == 4
    metric = config.get_parsed_content("validate_patches::evaluator").state.metrics  # attached
    assert metric == {} and config.get_parsed_content("stored_settings")["ignore_label"] == 4
    assert config.get_parsed_content("carried_settings")["regions"] == REGIONS


def test_a_step_and_both_validations_take_no_notice_of_ignored_voxels(config):
    """The network sees the same patches, of labels in which only ignored voxels differ."""
    patches = config.get_parsed_content("train::dataset")
    network, loss = config.get_parsed_content("network"), config.get_parsed_content("loss")
    samples = [patches[index] for index in range(2)]
    image, label = (torch.stack([sample[key].as_tensor() for sample in samples]) for key in ("image", "label"))
    assert set(label.unique().tolist()) == {0, 1, 2, 3, 4}
    value = loss(network(image), label)
    value.backward()
    assert bool(torch.isfinite(value)) and value > 0
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients) and any(map(torch.any, gradients))

    evaluator = config.get_parsed_content("validate_patches::evaluator")
    evaluator.run()
    assert 0 <= evaluator.state.metrics["val_pooled_dice"] < 1
    pred, label = torch.zeros(4, 2, 2, 2), torch.tensor([1, 1, 4, 4, 0, 0, 2, 2]).view(1, 2, 2, 2)
    pred[1] = 1.0  # class 1 everywhere
    output = config.get_parsed_content("validate::postprocessing")({"pred": MetaTensor(pred), "label": label})
    voxels = {key: output[key].flatten().long().bincount(minlength=4).tolist() for key in ("label", "pred")}
    assert voxels == {"label": [4, 2, 2, 0], "pred": [2, 6, 0, 0]}


def test_without_a_plan_a_training_takes_both_from_the_data_set(tmp_path, config):
    plain = ConfigParser()
    plain.read_config(str(bundles.path("mednext_s_k3") / "configs" / "train.json"))
    options = {"bundle_root": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "patch_size": 32, "num_workers": 0}
    plain.update({**options, "out_channels": 4, "network_def::base_channels": 2})
    keys = ("regions", "ignore_label")
    assert [plain.get_parsed_content("task")[key] for key in keys] == [REGIONS, 4]
    assert plain.get_parsed_content("loss").loss.ignore_label == 4
    assert plain.get_parsed_content("train::preprocessing").transforms[0].ignore_label == 4
    assert plain.get_parsed_content("stored_settings") == config.get_parsed_content("stored_settings")


def test_ignored_voxels_are_never_a_class(tmp_path, task, capfd):
    bundle = bundles.copy("mednext_s_k3", tmp_path)
    options = ["--dataset_dir", str(tmp_path / "data"), "--out_channels", "5"]
    assert main(["train", str(bundle), *options]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert "out_channels is 5" in error and "'ignore'" in error and error.endswith("set out_channels to 4.")


def test_without_an_ignore_label_a_training_is_as_it_was(tmp_path, config):
    describe(tmp_path / "data", labels={"background": 0, "one": 1, "two": 2, "three": 3})
    config.update({"ignore_label": None, "regions": None})
    assert config.get_parsed_content("loss").loss.ignore_label is None
    assert config.get_parsed_content("train::preprocessing").transforms[0].ignore_label is None
    task, settings = config.get_parsed_content("task"), config.get_parsed_content("preprocessing_settings")
    assert (task["regions"], task["ignore_label"]) == (None, None)
    assert set(settings) == {"spacing", "orientation", "normalization", "intensity"}


def test_a_prediction_saves_the_regions_raw_and_postprocessed(tmp_path, example_files):
    decision = tmp_path / "decision.json"
    decision.write_text(json.dumps({"keep_largest_component": [{"classes": [3], "minimum_size_mm3": None}]}))
    parser = ConfigParser()
    parser.read_config(str(bundles.path("mednext_s_k3") / "configs" / "inference.json"))
    options = {"regions": REGIONS, "out_channels": 4, "output_dir": str(tmp_path / "out"), "postprocess": str(decision)}
    parser.update(
        {**options, "input": example_files["image"], "in_channels": 2, "checkpoint": str(tmp_path / "none.pt")}
    )
    image = parser.get_parsed_content("preprocessing")({"image": example_files["image"], "id": "image_1"})["image"]
    probabilities = np.random.RandomState(0).dirichlet(np.ones(4), image.shape[1:]).transpose(3, 0, 1, 2)
    parser.get_parsed_content("postprocessing")({"image": image, "pred": torch.from_numpy(probabilities)})
    center = []
    for folder in (tmp_path / "out", tmp_path / "out" / "postprocessed"):
        classes = np.asarray(nib.load(folder / "image_1.nii.gz").dataobj)
        masks = {path.name: path / "image_1.nii.gz" for path in (folder / "regions").iterdir()}
        assert set(masks) == set(REGIONS)
        for name, file in masks.items():
            np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), np.isin(classes, REGIONS[name]))
        center.append((classes == 3).sum())
    assert center[0] > center[1] > 0
    masks["whole"].write_bytes(b"of others")
    with pytest.raises(Exception) as error:
        [parser.get_parsed_content(f"checks::{index}") for index in range(2, len(parser["checks"]))]
    assert f"{masks['whole']} exists and was not written by this package" in str(error.value.__cause__)
    parser.update({"save_regions": "false"})
    transforms = parser.get_parsed_content("postprocessing").transforms
    assert [type(transform).__name__ for transform in transforms if "Region" in type(transform).__name__] == []


@pytest.mark.slow
def test_plan_train_and_evaluate_with_the_commands(tmp_path, task):
    bundle = bundles.new_bundle("S", 3, task, tmp_path / "bundle")

    def mednext(*arguments):
        command = [sys.executable, "-m", "mednext_monai", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
        return result.stdout + result.stderr

    short = ("--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "1")
    log = mednext("train", bundle, *TINY, *short)
    assert "val_mean_dice" in log and "val_pooled_dice" in log
    settings = read_settings(bundle / "models" / "model.pt")
    assert (settings["regions"], settings["ignore_label"], settings["out_channels"]) == (REGIONS, 4, 4)
    locations = next((bundle / "cache").glob("*/case_0/*/foreground.npz"))
    with np.load(locations) as file:
        assert file.files == ["1", "2", "3", "annotated"]
    base = ("--network_def::base_channels", "4", "--num_workers", "0", "--mirror", "false")
    mednext("evaluate", bundle, *base)
    assert any((bundle / "eval").glob("*.csv"))

    images = tmp_path / "data" / "imagesTr"
    mednext("predict", bundle, images / "case_3_0000.nii.gz", tmp_path / "out", *base)
    (prediction,) = (tmp_path / "out").glob("*.nii.gz")
    classes = np.asarray(nib.load(prediction).dataobj)
    for name, values in REGIONS.items():  # which the checkpoint knows
        mask = nib.load(tmp_path / "out" / "regions" / name / prediction.name)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.isin(classes, values))
    prediction.rename(tmp_path / "out" / "case_3.nii.gz")
    assert set(np.unique(nib.load(tmp_path / "out" / "case_3.nii.gz").dataobj)) <= {0, 1, 2, 3}  # dense, not ignored
    labels, description = tmp_path / "data" / "labelsTr", tmp_path / "data" / "dataset.json"
    options = ("--labels", description, "--allow_missing", "--output_dir", tmp_path)
    mednext("evaluate-folder", tmp_path / "out", labels, *options)
    with open(tmp_path / "metrics.csv") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"whole without core", "core without center", *REGIONS}
    with open(bundle / "eval/metrics.csv") as file:
        assert {row["class"] for row in csv.DictReader(file)} == set(rows)  # those of the bundle
    truth = np.asarray(nib.load(labels / "case_3.nii.gz").dataobj)
    found = np.asarray(nib.load(tmp_path / "out" / "case_3.nii.gz").dataobj)
    whole, predicted = np.isin(truth, [1, 2, 3]), (found > 0) & (truth != 4)
    expected = 2 * (whole & predicted).sum() / (whole.sum() + predicted.sum())
    assert float(rows["whole"]["dice"]) == pytest.approx(expected, abs=1e-6)
