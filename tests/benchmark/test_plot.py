"""Promise of the chart: bars are as long as their ratios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark import MACHINE, measurements
from PIL import Image


def test_the_longest_bar_of_the_chart_is_the_largest_ratio(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from mednext_monai.benchmark.plot import draw

    draw(tmp_path / "plot.png", MACHINE, measurements())
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))[200:]  # below the legend
    lengths = {}
    for name, color in (("plain", "#1f77b4"), ("monai", "#ff7f0e")):  # matplotlib's first two
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        lengths[name] = (pixels == rgb).all(2).sum(1).max()
    assert abs(lengths["monai"] / lengths["plain"] - 3.8 / 2) < 0.02
