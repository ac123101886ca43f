"""``mednext evaluate`` in parts: the cases of each run, and the tables of all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.bundles import make_trained
from helpers.datasets import make_decathlon
from monai.bundle import ConfigParser

from mednext_monai.cli import main
from mednext_monai.networks import create_mednext

VALIDATED = ["case_01", "case_02", "case_04"]


@pytest.fixture
def dataset(tmp_path) -> Path:
    folder = make_decathlon(tmp_path / "data", cases=5)
    split = {"train": ["case_00", "case_03"], "val": VALIDATED}
    (folder / "splits_final.json").write_text(json.dumps([split]))
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = make_trained("mednext_s_k3", tmp_path, base_channels=4)
    network = create_mednext("S", 3, out_channels=3, deep_supervision=True, base_channels=4)
    torch.save(network.state_dict(), folder / "models/model.pt")
    return folder


def evaluate(bundle: Path, dataset: Path, output: Path, *options: str) -> int:
    common = ["--dataset_dir", str(dataset), "--out_channels", "3", "--patch_size", "32", "--num_workers", "0"]
    return main(["evaluate", str(bundle), *common, "--mirror", "false", "--output_dir", str(output), *options])


def parsed(bundle: Path, dataset: Path, **options: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(dataset), "out_channels": 3, **options})
    return parser


def test_every_case_is_in_one_part_and_all_parts_are_of_one_evaluation(bundle, dataset):
    parts = [parsed(bundle, dataset, part=i, parts=2) for i in range(2)]
    found = [[case["id"] for case in part.get_parsed_content("evaluated_cases")] for part in parts]
    assert found == [VALIDATED[::2], VALIDATED[1::2]]
    assert len(parts[0].get_parsed_content("validate::dataset")) == 2
    one, other = (part.get_parsed_content("evaluated_part") for part in parts)
    assert one.evaluation == other.evaluation and one.evaluation["mirror"] == "True"
    same = parsed(bundle, dataset, part=0, parts=2, tolerance=1, tolerance_in_voxels="no", overwrite=True)
    assert same.get_parsed_content("evaluated_part") == one
    for option in ({"tolerance": 2}, {"mirror": False}, {"regions": {"any": [1, 2]}}, {"patch_size": 32}):
        assert parsed(bundle, dataset, part=0, parts=2, **option).get_parsed_content("evaluated_part") != one
    whole = parsed(bundle, dataset)
    assert [case["id"] for case in whole.get_parsed_content("evaluated_cases")] == VALIDATED


@pytest.mark.slow
def test_parts_of_a_fold_end_with_the_tables_and_segmentations_of_all_its_cases(bundle, dataset, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    saving = ("--save_predictions", "true")
    assert evaluate(bundle, dataset, whole, *saving) == 0, capfd.readouterr().err
    assert evaluate(bundle, dataset, parts, *saving, "--part", "1", "--parts", "2") == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == "part 1 of 2 is done; still missing: part 0"
    assert [file.name for file in (parts / "predictions").iterdir()] == ["case_02.nii.gz"]
    moved = tmp_path / "moved.pt"
    shutil.copy(bundle / "models/model.pt", moved)  # the content counts
    assert evaluate(bundle, dataset, parts, *saving, "--part", "0", "--parts", "2", "--checkpoint", str(moved)) == 0
    assert (parts / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, parts))
    assert other["settings"].pop("checkpoint") == str(moved) and one["settings"].pop("checkpoint")
    assert one == other and one["cases"] == 3
    for case in VALIDATED:
        files = [folder / "predictions" / f"{case}.nii.gz" for folder in (whole, parts)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert evaluate(bundle, dataset, parts, "--part", "0", "--parts", "2", "--tolerance", "2") == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert "metrics.part_0.json belongs to another evaluation (other save_predictions, tolerance)" in error
