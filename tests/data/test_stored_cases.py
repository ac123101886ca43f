"""Stored cases of a training, prepared by a run or on first use."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.datasets import write_case
from monai.data import DataLoader

from mednext_monai.data import CasesError, StoredCases, named_cases
from mednext_monai.data.patches import PatchDataset
from mednext_monai.data.stored_dataset import StoredDataset

SETTINGS = {"spacing": [1.0, 1.0, 1.0], "normalization": ["zscore"], "intensity": None, "orientation": None}


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    return [write_case(tmp_path / "data", f"case_{number}", number) for number in range(3)]


@pytest.fixture
def stored(cases, tmp_path) -> StoredCases:
    return StoredCases(cases[:2], cases[2:], SETTINGS, str(tmp_path / "cache"))


def test_nothing_is_preprocessed_before_a_case_is_used(stored, cases, tmp_path):
    data = StoredDataset(cases[:2], stored.of("training"), lambda case: np.load(case["image"]))
    patches = PatchDataset(cases[2:], lambda case: case, stored=stored.of("validation"))
    assert len(data) == 2 and len(patches) == 500 and not (tmp_path / "cache").exists()
    assert data[1].dtype == np.float32 and data[1].ndim == 4
    assert patches[0]["id"] == "case_2" and patches[0]["image"].endswith("image.npy")
    assert data.data == cases[:2]  # what a tool reads


def test_a_run_prepares_all_cases_and_finds_those_that_are_invalid(stored, cases):
    open(cases[2]["image"], "w").close()
    with pytest.raises(CasesError, match="case_2"):
        stored.prepare()


def test_the_processes_of_a_loader_find_the_same_cases_without_a_run(stored, cases, tmp_path):
    data = StoredDataset(
        cases[:2], stored.of("training"), lambda case: {"id": case["id"], "image": np.load(case["image"])}
    )
    found = {batch["id"][0]: batch["image"][0].numpy() for batch in DataLoader(data, batch_size=1, num_workers=2)}
    again = StoredCases(cases[:2], [], SETTINGS, str(tmp_path / "cache"))
    again.prepare()
    assert set(found) == {"case_0", "case_1"}
    for case in again.of("training"):
        np.testing.assert_array_equal(found[case["id"]], np.load(case["image"]))


def test_cases_without_an_id_are_named_after_their_files():
    listed = [{"image": "/a/x.nii.gz", "label": "/b/x.nii.gz"}, {"image": ["/a/y_0000.nii", "/a/y_0001.nii"]}]
    listed += [{"id": "mine", "image": "/a/z.nii"}, {"image": "/a/w_0000.nii"}]
    assert [case["id"] for case in named_cases(listed)] == ["x", "y", "mine", "w_0000"]
    assert named_cases(listed)[0]["label"] == "/b/x.nii.gz"
