"""MedNeXt in MONAI's Auto3DSeg: ``AutoRunner`` analyzes, plans, trains, and segments with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers.datasets import make_decathlon
from monai.apps.auto3dseg import AutoRunner

from mednext_monai.auto3dseg import MedNeXtAlgo

ALGOS = {"mednext": {"_target_": "mednext_monai.auto3dseg.MedNeXtAlgo", "template_path": "."}}
STATS = {"stats_summary": {"label_stats": {"labels": [0, 1, 2]}, "image_stats": {"channels": {"max": 1}}}}


@pytest.fixture
def listed(tmp_path) -> dict:
    """The input of Auto3DSeg: a list of five cases in two folds, and one to segment."""
    data = make_decathlon(tmp_path / "data", cases=5)
    description = json.loads((data / "dataset.json").read_text())
    training = [{**case, "fold": index % 2} for index, case in enumerate(description["training"])]
    content = {"training": training, "testing": [{"image": training[0]["image"]}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return {"modality": "MRI", "datalist": str(tmp_path / "list.json"), "dataroot": str(data), "name": "boxes"}


def make_algo(tmp_path: Path, listed: dict, **arguments) -> MedNeXtAlgo:
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(listed))
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(STATS))
    algo = MedNeXtAlgo(".", **arguments)
    algo.set_data_stats(str(tmp_path / "stats.yaml"))
    algo.set_data_source(str(tmp_path / "input.yaml"))
    return algo


def test_a_fold_is_a_bundle_of_the_task_with_the_folds_of_the_list(tmp_path, listed):
    algo = make_algo(tmp_path, listed, variant="B", kernel_size=5)
    algo.export_to_disk(str(tmp_path / "work"), "mednext_1", fold=1)
    config = json.loads((tmp_path / "work/mednext_1/configs/train.json").read_text())
    assert (config["variant"], config["kernel_size"], config["out_channels"]) == ("B", 5, 3)
    (split,) = json.loads((tmp_path / "work/mednext_1/configs/splits.json").read_text())
    assert sorted(split["val"]) == ["case_01", "case_03"] and len(split["train"]) == 3
    other = MedNeXtAlgo()
    other.load_state_dict(json.loads(json.dumps(algo.state_dict())))
    assert (other.variant, other.kernel_size, other.output_path) == ("B", 5, str(tmp_path / "work/mednext_1"))


def test_a_fold_without_cases_is_named(tmp_path, listed):
    with pytest.raises(ValueError, match="has 0 of 5 cases in fold 7"):
        make_algo(tmp_path, listed).export_to_disk(str(tmp_path / "work"), "mednext_7", fold=7)


def test_names_of_auto3dseg_are_understood_and_others_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        options = MedNeXtAlgo()._options({"num_epochs": 3, "batch_size": 2, "num_crops_per_image": 4})
    assert options == {"epochs": 3, "batch_size": 2}
    assert "no training parameters num_crops_per_image" in caplog.text


@pytest.mark.slow
def test_auto_runner_trains_and_segments(tmp_path, listed, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runner = AutoRunner(str(tmp_path / "work"), listed, algos=ALGOS)
    runner.set_num_fold(1)
    runner.set_analyze_params({"do_ccp": False, "device": "cpu"})
    runner.set_training_params(
        {
            **{"num_epochs": 1, "iterations_per_epoch": 2, "num_epochs_per_validation": 1, "pseudo_dice_batches": 1},
            **{"patch_size": [32, 32, 32], "num_workers": 0, "seed": 0},
        }
    )
    runner.set_prediction_params({"mirror": False})
    runner.run()
    (result,) = (tmp_path / "work" / "ensemble_output").rglob("*.nii.gz")
    image = nib.load(Path(listed["dataroot"], json.loads(Path(listed["datalist"]).read_text())["testing"][0]["image"]))
    segmentation = nib.load(result)
    assert segmentation.shape[:3] == image.shape and np.allclose(segmentation.affine, image.affine, atol=1e-3)
    assert set(np.unique(segmentation.dataobj)) <= {0, 1, 2}
