"""Finished and invalid cases are left out, and a case that cannot be read is an item with the reason."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers.datasets import AFFINE, make_case, save
from monai.data import DataLoader

from mednext_monai.data import Output, Results, inference_cases
from mednext_monai.data.io import write_segmentation
from mednext_monai.engines import CaseDataset
from mednext_monai.engines.case_dataset import ERROR
from mednext_monai.transforms import Preprocessd
from mednext_monai.transforms.preprocess import DIGEST


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    for number in range(3):
        save(tmp_path / "in" / f"case_{number}.nii.gz", make_case(number)[0][..., 0])
    return inference_cases("nowhere", tmp_path / "in")


@pytest.fixture
def results(tmp_path) -> Results:
    return Results([Output(str(tmp_path / "out"))], {"overlap": 0.5})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_has_the_digest_of_its_result_or_the_reason_why_there_is_none(cases, results, tmp_path, workers):
    (tmp_path / "in" / "case_1.nii.gz").write_bytes(b"damaged")
    dataset = CaseDataset(cases, Preprocessd("image", label_key=None), results)
    first, bad, last = DataLoader(dataset, batch_size=1, num_workers=workers)
    for number, item in ((0, first), (2, last)):
        assert item[DIGEST] == [results.digest(cases[number])] == item["image"].meta[DIGEST]
    assert bad["id"] == ["case_1"] and set(bad) == {"id", ERROR}
    assert f"{tmp_path / 'in' / 'case_1.nii.gz'}: cannot be read as an image" in bad[ERROR][0]


def test_finished_and_invalid_cases_are_left_out_and_counted(cases, results, tmp_path, caplog):
    write_segmentation(
        np.ones((20, 18, 12), np.uint8),
        tmp_path / "out" / "case_0.nii.gz",
        affine=AFFINE,
        digest=results.digest(cases[0]),
    )
    (tmp_path / "in" / "case_1.nii.gz").write_bytes(b"damaged")
    dataset = CaseDataset(cases, None, results)
    with caplog.at_level(logging.INFO):
        dataset.skip_finished()
        assert [case["id"] for case in dataset.data] == ["case_1", "case_2"]
        assert "1 of 3 cases are finished" in caplog.text and caplog.text.strip().endswith("2 are left")
        dataset.leave_out_invalid(1)
    assert [case["id"] for case in dataset.data] == ["case_2"] and len(dataset) == 1
    assert list(dataset.failures) == ["case_1"] and dataset.total == 3 and len(cases) == 3
    assert "case_1 is left out: " in caplog.text
    repeated = CaseDataset(cases, None, results)
    repeated.skip_finished(overwrite="yes")
    assert len(repeated) == 3
    plain = CaseDataset(cases)
    plain.skip_finished()
    assert len(plain) == 3 and plain[0] == cases[0]
