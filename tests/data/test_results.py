"""A case is finished if all its files are there and the content of images, weights and settings is what it was."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
from helpers.datasets import AFFINE, save

from mednext_monai.data import Output, Results, check_outputs
from mednext_monai.data.io import DESCRIPTION, is_ours, read_digest, write_segmentation
from mednext_monai.inferers import MedNeXtInferer

LABELS = np.pad(np.ones((2, 2, 2), np.uint8), 1)


@pytest.fixture
def case(tmp_path) -> dict:
    save(tmp_path / "in" / "a_0000.nii.gz", np.ones((4, 4, 4), np.float32))
    save(tmp_path / "in" / "a_0001.nii.gz", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "model.pt").write_bytes(b"weights")
    return {"id": "a", "image": [str(tmp_path / "in" / f"a_000{channel}.nii.gz") for channel in range(2)]}


def results(tmp_path, *more: Output, **settings) -> Results:
    settings = {"overlap": 0.5, "inferer": MedNeXtInferer(16, mirror=True), **settings}
    return Results([Output(str(tmp_path / "out")), list(more)], settings, [[tmp_path / "model.pt"], None])


def finish(tmp_path, case: dict, found: Results, labels: np.ndarray = LABELS) -> None:
    write_segmentation(labels, tmp_path / "out" / "a.nii.gz", affine=AFFINE, digest=found.digest(case))


def test_a_result_is_recognized_by_content_not_by_place_or_time(tmp_path, case):
    found = results(tmp_path)
    assert not found.is_finished(case)
    finish(tmp_path, case, found)
    assert found.is_finished(case) and found.finished([case, {**case, "id": "b"}]) == {"a"}
    for file in case["image"]:
        os.utime(file, (1, 1))
    (tmp_path / "in").rename(tmp_path / "moved")
    (tmp_path / "model.pt").rename(tmp_path / "last.pt")
    (tmp_path / "out").rename(tmp_path / "results")
    moved = {**case, "image": [file.replace("/in/", "/moved/") for file in case["image"]]}
    again = Results([Output(str(tmp_path / "results"))], found.settings, [tmp_path / "last.pt"])
    assert again.is_finished(moved)


def test_whatever_changes_the_result_makes_it_unfinished(tmp_path, case):
    finish(tmp_path, case, results(tmp_path))
    assert results(tmp_path).is_finished(case)
    assert results(tmp_path, inferer=MedNeXtInferer(16, sw_batch_size=4, mirror=True)).is_finished(case)  # only faster
    for changed in (
        {"overlap": 0.25},
        {"inferer": MedNeXtInferer(32, mirror=True)},
        {"inferer": MedNeXtInferer(16)},
        {"inferer": MedNeXtInferer(16, mirror=True, accumulate="half")},
        {"inferer": MedNeXtInferer(16, mirror=True, mode="constant")},
        {"amp": True},
    ):
        assert not results(tmp_path, **changed).is_finished(case), changed
    swapped = {**case, "image": case["image"][::-1]}
    assert not results(tmp_path).is_finished(swapped)  # the channels
    (tmp_path / "model.pt").write_bytes(b"Weights")
    assert not results(tmp_path).is_finished(case)
    (tmp_path / "model.pt").unlink()
    assert not results(tmp_path).is_finished(case)
    (tmp_path / "model.pt").write_bytes(b"weights")
    assert results(tmp_path).is_finished(case)
    save(tmp_path / "in" / "a_0001.nii.gz", np.full((4, 4, 4), 2, np.float32))
    assert not results(tmp_path).is_finished(case)


def test_all_files_of_a_case_are_needed_and_those_without_a_digest_are_covered(tmp_path, case):
    other = Output(str(tmp_path / "out" / "postprocessed"))
    series = Output(str(tmp_path / "out"), ".seg.dcm", needs_foreground=True)
    found = results(tmp_path, other, series)
    finish(tmp_path, case, results(tmp_path))  # by a run that wrote fewer files
    write_segmentation(LABELS, other.path(case), affine=AFFINE, digest=found.digest(case))
    series.path(case).write_bytes(b"of an older run")
    assert not found.is_finished(case)
    finish(tmp_path, case, found)
    assert found.is_finished(case)
    series.path(case).unlink()
    assert not found.is_finished(case)
    finish(tmp_path, case, found, LABELS * 0)  # for which there is no such file
    assert found.is_finished(case)
    write_segmentation(LABELS, other.path(case), affine=AFFINE)
    assert not found.is_finished(case)


def test_an_image_that_cannot_be_read_is_not_finished(tmp_path, case):
    finish(tmp_path, case, results(tmp_path))
    os.unlink(case["image"][1])
    assert not results(tmp_path).is_finished(case)


def test_the_digest_is_in_the_header_and_the_file_is_ours_with_and_without(tmp_path, case):
    files = [tmp_path / f"{name}.nii.gz" for name in ("plain", "digest", "foreign", "similar")]
    write_segmentation(LABELS, files[0], affine=AFFINE)
    write_segmentation(LABELS, files[1], affine=AFFINE, digest="1f-2e")
    save(files[2], LABELS)
    image = nibabel.Nifti1Image(LABELS, AFFINE)
    image.header["descrip"] = DESCRIPTION + b"2"
    nibabel.save(image, files[3])
    assert [read_digest(file) for file in files] == ["", "1f-2e", None, None]
    assert [is_ours(file) for file in files] == [True, True, False, False]
    assert read_digest(tmp_path / "none.nii.gz") is None
    assert len(DESCRIPTION) + 1 + len(results(tmp_path).digest(case)) <= 80
    with pytest.raises(ValueError, match="at most 50 characters"):
        write_segmentation(LABELS, files[0], affine=AFFINE, digest="x" * 51)
    check_outputs([{"id": "digest", "image": "x.nii.gz"}], tmp_path)
    with pytest.raises(ValueError, match=r"foreign.nii.gz exists and was not written by this package"):
        check_outputs([{"id": "foreign", "image": "x.nii.gz"}], tmp_path)
