"""How a plan in 2D cuts volumes into slices, against the original's rule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.datasets import make_boxes, make_pictures

from mednext_monai.data.dataset import Dataset
from mednext_monai.planning import make_plan, plan, text_report
from mednext_monai.planning.fingerprint import CaseFingerprint
from mednext_monai.planning.memory import measure
from mednext_monai.planning.slices import plan_slices

PUBLISHED = (1.0, 1.0, 1.0)


def make_cases(shape, spacing=PUBLISHED) -> list[CaseFingerprint]:
    values = np.arange(30, dtype=np.float32).reshape(1, 30)
    counts = np.array([90, 10])
    return [
        CaseFingerprint(str(i), shape, spacing, "RAS", shape, counts, values, values, values.mean(1), values.std(1))
        for i in range(3)
    ]


def planned(shape, spacing=PUBLISHED, **options) -> dict:
    dataset = Dataset(".", "decathlon", "Task", ["MR"], ["background", "one"], [])  # type: ignore[arg-type]
    return make_plan(dataset, make_cases(shape, spacing), spatial_dims=2, **options)


@pytest.mark.parametrize(
    "shape, spacing, options, axis, target",
    [
        ((60, 50, 40), (1.0, 1.0, 1.0), {}, 2, [1, 1, None]),
        ((60, 50, 40), (5.0, 1.0, 1.0), {}, 2, [1, 1, None]),  # of the target, where all axes are equal
        ((60, 50, 40), (5.0, 1.0, 1.0), {"slice_axis": 0, "slice_spacing": "keep"}, 0, [None, 1, 1]),
        ((60, 50, 40), (1.0, 1.0, 3.0), {"slice_spacing": 1}, 2, [1, 1, 1]),
        ((60, 50, 40), (1.0, 1.0, 3.0), {"slice_spacing": "1.5"}, 2, [1, 1, 1.5]),  # as typed
        ((60, 50, 40), (1.0, 1.0, 3.0), {"slice_axis": 1, "slice_spacing": 2.5}, 1, [1, 2.5, 1]),
        ((60, 50, 1), (1.0, 1.0, 9.0), {}, 2, [1, 1, None]),
        ((1, 50, 40), (9.0, 1.0, 1.0), {}, 0, [None, 1, 1]),
    ],
)
def test_slices_lie_across_the_last_axis_and_are_resampled_in_their_plane(shape, spacing, options, axis, target):
    slices = plan_slices(make_cases(shape, spacing), PUBLISHED, **options)
    assert (slices.axis, slices.spacing) == (axis, target)


def test_slices_that_are_not_those_of_the_scanner_are_warned_of():
    def warnings(*spacing: float, **options) -> str:
        return " ".join(planned((300, 300, 40), spacing, **options)["_plan_"]["warnings"])

    assert "slices" not in warnings(1.0, 1.0, 5.0)
    assert "published is to keep them" in warnings(1.0, 1.0, 5.0, slice_spacing=1)
    assert "plan with --slice_axis 0" in warnings(5.0, 1.0, 1.0)
    assert "slices" not in warnings(5.0, 1.0, 1.0, slice_axis=0)


def test_the_plan_has_the_original_s_patch_and_batch_dice_and_one_batch_size():
    result = planned((700, 300, 40))
    assert result["patch_size"] == [512, 304] and result["batch_size"] == 12 and result["batch_dice"] is True
    assert (result["spatial_dims"], result["slice_axis"], result["dummy_2d"]) == (2, 2, False)
    assert planned((700, 700, 40))["patch_size"] == [512, 512]
    assert planned((700, 300, 40), patch_size=256, batch_size=4, slice_axis=1)["patch_size"] == [256, 256]
    assert "slice_axis" in text_report(planned((700, 300, 40)))
    memory = planned((700, 700, 40))["_plan_"]["training_memory_gib"]
    live = measure("S", 3, 2, size=512, batch_size=12, spatial_dims=2) * 12 * 512**2 / 2**30
    assert memory["S_k3"]["off"] == pytest.approx(1.1 * live + 1, abs=0.2)


def test_options_for_2d_are_refused_in_3d_and_bad_ones_in_2d(tmp_path):
    dataset = make_boxes(tmp_path / "data")
    for options, message in (
        ({"slice_axis": 0}, "slice_axis is for a plan in 2D"),
        ({"slice_spacing": "keep"}, "slice_spacing is for a plan in 2D"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"spatial_dims": 2, "slice_axis": 3}, "slice_axis must be 0, 1 or 2, got 3"),
        ({"spatial_dims": 2, "slice_spacing": 0}, "slice_spacing must be keep or a positive number of mm, got 0"),
        ({"spatial_dims": 2, "slice_spacing": "1mm"}, "slice_spacing must be keep or a positive number of mm"),
        ({"spatial_dims": 2, "patch_size": [16, 16, 16]}, "one or two positive multiples of 16 for spatial_dims 2"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(dataset, tmp_path / "task.json", processes=1, progress=False, **options)
    assert not (tmp_path / "task.json").exists()
    mixed = [*make_cases((1, 50, 40)), *make_cases((60, 50, 1))]
    with pytest.raises(ValueError, match="slices across one axis, got 0 across axis 0, 0 across axis 2"):
        plan_slices(mixed, PUBLISHED)
    with pytest.raises(ValueError, match="slice_axis is 1, but images have one slice across axis 2"):
        plan_slices(make_cases((60, 50, 1)), PUBLISHED, slice_axis=1)


def test_the_report_of_pictures_shows_them_once(tmp_path):
    plan(make_pictures(tmp_path / "data"), tmp_path / "task.json", processes=1, progress=False, spatial_dims=2)
    assert json.loads((tmp_path / "task.json").read_text())["spacing"] == [1.0, 1.0, None]
    page = (tmp_path / "task.html").read_text()
    assert page.count("<figure>") == 3 and "axial slice 0" in page and "coronal" not in page
