"""Promises of histograms: every value is counted once, and text from outside is escaped."""

from __future__ import annotations

import re

import numpy as np

from mednext_monai.planning.histograms import histogram


def test_a_histogram_holds_every_value_once():
    values = np.array([3.0, 3, 4, 8, 8, 8, 8])
    svg = histogram([("", "#000000", values)], "shape", "voxels")
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    np.testing.assert_allclose(np.array(heights) / max(heights), np.array([2, 1, 4]) / 4, atol=0.01)
    assert histogram([("", "#000000", np.ones(5))], "one <value>", "mm").count("<rect") == 1
    assert "one &lt;value&gt;" in histogram([("", "#000000", np.ones(5))], "one <value>", "mm")
