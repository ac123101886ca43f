"""The classes of a bundle as 3D Slicer reads them."""

from __future__ import annotations

import csv
import io
import json

from mednext_monai import bundles
from mednext_monai.bundles.label_table import label_table
from mednext_monai.bundles.library import LABEL_TABLE
from mednext_monai.bundles.task_bundle import new_bundle
from mednext_monai.planning import plan


def metadata(*names: str, **pred) -> dict:
    described = {str(value): name for value, name in enumerate(names)}
    return {"network_data_format": {"outputs": {"pred": {"channel_def": described, **pred}}}}


def test_each_class_has_a_row_with_its_codes():
    kidney = {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"}
    left = {"value": "7771000", "scheme": "SCT", "meaning": "Left"}
    table = label_table(
        metadata("background", "kidney, left", "blob", segment_codes={"1": {"type": kidney, "modifier": left}})
    )
    one, two = csv.DictReader(io.StringIO(table.decode()))
    assert (one["LabelValue"], one["Name"]) == ("1", "kidney, left")
    assert one["SegmentedPropertyTypeCodeSequence.CodeValue"] == "64033007"
    assert one["SegmentedPropertyTypeModifierCodeSequence.CodeMeaning"] == "Left"
    assert one["SegmentedPropertyCategoryCodeSequence.CodingSchemeDesignator"] == "SCT"
    assert one["AnatomicRegionSequence.CodeValue"] == two["SegmentedPropertyTypeModifierCodeSequence.CodeValue"] == ""
    assert (two["LabelValue"], two["Name"]) == ("2", "blob")


def test_a_bundle_of_a_task_has_the_table_and_one_for_any_task_has_none(dataset, tmp_path):
    assert not (bundles.path("mednext_l_k5") / "models" / LABEL_TABLE).exists()
    description = json.loads((dataset / "dataset.json").read_text())
    description["labels"] = {"0": "background", "1": "Spleen", "2": "spleen"}
    (dataset / "dataset.json").write_text(json.dumps(description))
    plan(dataset, tmp_path / "task.json", processes=0, progress=False, report=False)
    folder = new_bundle("S", 3, tmp_path / "task.json", tmp_path / "spleens")
    pred = json.loads((folder / "configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "Spleen_1", "2": "spleen_2"}  # equal in lower case
    assert pred["segment_codes"]["1"]["type"]["value"] == "78961009"
    rows = list(csv.DictReader((folder / "models" / LABEL_TABLE).open()))
    assert label_table(metadata("background", "foreground")) is None
    assert [(row["LabelValue"], row["Name"]) for row in rows] == [("1", "Spleen_1"), ("2", "spleen_2")]
