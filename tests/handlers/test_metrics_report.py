"""The tables of an evaluator are those of the folder of its segmentations, in one process or in several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.datasets import save
from helpers.processes import spawn
from helpers.segmentations import GRID, make_component_set
from ignite.engine import Engine
from monai.data import MetaTensor

from mednext_monai.evaluation import Labels, evaluate_folder, write_evaluation
from mednext_monai.handlers import MetricsReport

LABELS = Labels({"liver": 1, "tumor, left": 2}, {"any": [1, 2]}, ignore=3)
NAMES = ("case_b", "case_a", "case,c", "case_d")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Four cases; in one of them the ignored label occurs, in another the class 2 in neither file."""
    _, pairs = make_component_set(1)
    for name, (prediction, reference) in zip(NAMES, pairs):
        if name == "case_d":
            prediction, reference = (
                np.where(array == 2, 0, array).astype(np.uint8) for array in (prediction, reference)
            )
        if name == "case_a":
            reference[:2] = 3
        save(tmp_path / f"pred/{name}.nii.gz", prediction, GRID)
        save(tmp_path / f"ref/{name}.nii.gz", reference, GRID)
    return tmp_path / "pred", tmp_path / "ref"


def evaluate(folder: str, names: tuple[str, ...], **options) -> dict:
    """Run an evaluator whose network returns what is in the folder ``pred``; return its metrics."""
    from mednext_monai.data.io import read_label

    def sample(name: str, kind: str) -> MetaTensor:
        array, affine = read_label(f"{folder}/{kind}/{name}.nii.gz")
        return MetaTensor(torch.from_numpy(array[None]), affine=affine, meta={"filename_or_obj": f"{name}.nii.gz"})

    def step(_, batch):
        (name,) = batch["id"]
        return [{"image": sample(name, "ref"), "label": sample(name, "ref"), "pred": sample(name, "pred")}]

    engine = Engine(step)
    MetricsReport(f"{folder}/ours", LABELS, {"checkpoint": "model.pt"}, **options).attach(engine)
    engine.run([{"id": [name]} for name in names])
    return engine.state.metrics


@pytest.mark.parametrize("options", [{}, {"tolerance": 2.0, "tolerance_in_voxels": "true", "format": "nnunet"}])
def test_tables_are_those_of_the_folder(tmp_path, folders, options, capsys):
    metrics = evaluate(str(tmp_path), NAMES, **options)
    arguments = {key: value for key, value in options.items() if key != "format"}
    expected = evaluate_folder(*folders, LABELS, processes=1, **arguments)
    write_evaluation(expected, tmp_path / "theirs", options.get("format", "table"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    assert (ours / "metrics.csv").read_bytes() == (theirs / "metrics.csv").read_bytes()
    found, wanted = (json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs))
    assert found.pop("settings").pop("checkpoint") == str(Path("model.pt").absolute()) and wanted.pop("settings")
    assert found == wanted and len(found["classes"]["liver"]["dice"]["without_value"]) < len(NAMES)
    assert metrics["mean_dice"] == found["mean_over_classes"]["dice"]
    assert "tumor, left" in capsys.readouterr().out
    if "format" in options:
        results = [json.loads((folder / "summary.json").read_text())["results"] for folder in (ours, theirs)]
        np.testing.assert_equal(results[0]["mean"], results[1]["mean"])  # NaN equals NaN


def test_processes_share_the_cases_and_the_first_one_writes_all(tmp_path, folders):
    spawn(evaluate_share, str(tmp_path), processes=2)
    write_evaluation(evaluate_folder(*folders, LABELS, processes=1), tmp_path / "theirs")
    assert (tmp_path / "ours/metrics.csv").read_bytes() == (tmp_path / "theirs/metrics.csv").read_bytes()
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()  # the metrics are those of all cases


def evaluate_share(rank: int, folder: str) -> None:
    """Evaluate one case in the first process and three in the second one."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    metrics = evaluate(folder, (NAMES[:1], NAMES[1:])[rank])
    Path(folder, str(rank)).write_text(str(metrics))
    dist.destroy_process_group()
