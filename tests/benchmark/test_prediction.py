"""Promises of the section prediction: a whole scan is segmented, and what stands in for the network counts as it."""

from __future__ import annotations

import time

import nibabel
import numpy as np
import pytest
import torch
from helpers.benchmark import TINY, run

from mednext_monai.benchmark import prediction
from mednext_monai.benchmark.options import parse


def test_time_memory_and_share_of_a_scan(tmp_path):
    found = run(tmp_path, "--sections", "prediction", "--classes", "5", "--accumulate", "half")
    assert [(m["section"], m["unit"], len(m["values"]["ours"])) for m in found] == [
        ("prediction", unit, 2) for unit in ("s", "MiB", "%")
    ]
    assert all(m["case"].startswith("S k3, 60x44x40 at 0.8 mm, 5 classes, half") for m in found)
    assert all(value > 0 for m in found for value in m["values"]["ours"])
    assert found[0]["notes"] == ["4 windows of 32^3, of which the network computed 4."]  # 48 x 35 x 32 voxels at 1 mm


def test_the_scan_is_segmented_on_its_grid(tmp_path):
    options = parse([*TINY, "--classes", "3"])
    scan = tmp_path / "scan.nii.gz"
    prediction._write_scan(scan, (30, 20, 25), 0.5)
    found = prediction._predict(options, "S_k3", scan)
    image, labels = nibabel.load(scan), nibabel.load(tmp_path / "S_k3_segmentation.nii.gz")
    assert labels.shape == image.shape == (30, 20, 25)
    np.testing.assert_array_equal(labels.affine, image.affine)
    assert found.windows == 1 and 0 < found.network < found.seconds


def test_windows_that_are_not_computed_count_with_the_mean_time():
    def network(window):
        time.sleep(0.02)
        return window + 1

    timed = prediction._Timed(network, torch.device("cpu"), 2)
    outputs = [timed(torch.full((1,), float(number))).item() for number in range(6)]
    assert outputs == [1, 2, 2, 2, 2, 2]
    assert timed.calls == 6 and 0.04 <= timed.seconds < 0.2
    assert timed.saved == pytest.approx(2 * timed.seconds)
    timed = prediction._Timed(network, torch.device("cpu"), None)
    assert [timed(torch.zeros(1)).item() for _ in range(3)] == [1, 1, 1] and timed.saved == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "1"], "--classes must be at least 2, got 1"),
        (["--scan", "5x5"], "--scan must be positive integers"),
        (["--scan_spacing", "0"], "--scan_spacing must be above 0, got 0"),
        (["--scan_windows", "0"], "--scan_windows must be at least 1, got 0"),
    ],
)
def test_options_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(arguments)
