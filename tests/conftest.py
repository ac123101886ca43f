"""Fixtures that several test files share: a tiny data set, and a bundle that is run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.bundles import BundleRunner
from helpers.datasets import make_boxes

from mednext_monai import bundles


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six training cases and one test case of 34 x 38 x 30 voxels in Decathlon layout."""
    return make_boxes(tmp_path / "Task99_Boxes")


@pytest.fixture
def run_bundle(tmp_path: Path, dataset: Path) -> BundleRunner:
    """Run ``python -m monai.bundle run`` on a copy of mednext_s_k3, far from the checkout, with a tiny network."""
    return BundleRunner(bundles.copy("mednext_s_k3", tmp_path), dataset, tmp_path)
