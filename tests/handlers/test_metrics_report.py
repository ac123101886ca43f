"""The tables of an evaluation name the classes; their numbers are MONAI's."""

from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import MetricsSaver

from mednext_monai.handlers import MetricsReport


def tables(folder, handler, details) -> dict[str, list[list[str]]]:
    """Run an evaluation of two cases whose metric has these details; return what is written, by file name."""
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {"dice": details}
    handler.attach(engine)
    engine.add_event_handler("EPOCH_STARTED", lambda engine: engine.state.metrics.update(dice=0.5))
    engine.run([[{"image": MetaTensor([0.0], meta={"filename_or_obj": f"{name}.nii.gz"})}] for name in ("a", "b,c")])
    return {file.name: list(csv.reader(open(file))) for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["background", "liver", "tumor, core"], ["liver", "tumor, core"]),
        (["liver", "tumor"], ["liver", "tumor"]),  # the metric has the background as well
        (["background", "mean", "class_2"], ["mean_1", "class_2"]),
        (["too", "many", "names", "for", "it"], ["class0", "class1"]),
    ],
)
def test_columns_and_rows_have_the_names_of_the_classes(tmp_path, names, columns):
    details = torch.tensor([[0.5, 1.0], [0.25, torch.nan]])
    found = tables(tmp_path / "ours", MetricsReport(str(tmp_path / "ours"), names), details)
    assert found["dice_raw.csv"] == [
        ["filename", *columns, "mean"],
        ["a.nii.gz", "0.5", "1.0", "0.75"],
        ["b,c.nii.gz", "0.25", "nan", "0.25"],
    ]
    saver = MetricsSaver(
        str(tmp_path / "monai"), "*", "*", lambda batch: [case["image"].meta for case in batch], summary_ops="*"
    )
    expected = tables(tmp_path / "monai", saver, details)
    assert found["metrics.csv"] == expected["metrics.csv"] == [["dice", "0.5"]]
    assert [row[0] for row in found["dice_summary.csv"]] == ["class", *columns, "mean"]
    assert [row[1:] for row in found["dice_summary.csv"]] == [row[1:] for row in expected["dice_summary.csv"]]
