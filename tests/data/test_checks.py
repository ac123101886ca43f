"""Everything wrong with a data set is found before planning, in one list with file names, and nothing is written."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.datasets import (
    AFFINE,
    BOX_AFFINE,
    BOX_SHAPE,
    SHAPE,
    describe,
    make_case,
    make_decathlon,
    make_nnunet,
    make_regions,
    rewrite,
    save,
)

from mednext_monai.data import (
    DatasetError,
    check_cases,
    check_folders,
    check_outputs,
    checks,
    preprocessed_cases,
    read_dataset,
)
from mednext_monai.data.checks import invalid_cases
from mednext_monai.data.io import write_segmentation
from mednext_monai.planning import scan


def problems_of(directory) -> list[str]:
    with pytest.raises(DatasetError) as error:
        scan(read_dataset(directory), processes=0, progress=False)
    return error.value.problems


LABEL = make_case(0)[1]


TURNED = AFFINE @ np.diag([1, 1, 1.02, 1])  # 0.44 mm off at the far end, of voxels of 1 mm


@pytest.mark.parametrize(
    "name, array, affine, message",
    [
        (
            "labelsTr",
            np.where(LABEL == 2, 7, LABEL),
            AFFINE,
            r"label value\(s\) 7 \(\d+ voxels\); allowed .* 0 to 2 \(3 classes, dataset",
        ),
        ("labelsTr", LABEL.astype(np.int16) * -1, AFFINE, r"label value\(s\) -2 .*-1 .*allowed are"),
        ("labelsTr", LABEL.astype(np.float32) * 0.7, AFFINE, r"label value\(s\) 0\.7 \(\d+ voxels\), 1\.4"),
        ("labelsTr", np.where(LABEL == 2, np.nan, LABEL), AFFINE, r"label value\(s\) nan \(\d+ voxels\)"),
        (
            "labelsTr",
            LABEL[:-1],
            AFFINE,
            r"has \(19, 18, 12\) voxels, but .*imagesTr/case_01.nii.gz has \(20, 18, 12\)",
        ),
        ("labelsTr", LABEL, TURNED, r"differs from .*imagesTr.* by 0\.44 mm.*agree to 0\.1 mm, 0\.1 voxels"),
        ("labelsTr", np.stack([LABEL] * 2, -1), AFFINE, "has 2 channels, a label must have one"),
        ("imagesTr", np.full(SHAPE, np.inf, np.float32), AFFINE, "4320 of 4320 voxels that are NaN or infinite"),
        ("imagesTr", np.zeros(SHAPE, np.float32), AFFINE, "every voxel is zero"),
        ("imagesTr", make_case(0, 3)[0], AFFINE, r"has 3 channel\(s\), expected 1 \(dataset.json: MRI\)"),
        (
            "imagesTr",
            make_case(0)[0][0, :, :, 0],
            AFFINE,
            "must be a 3D volume, or 4D with the channels last, got shape",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_was_found(tmp_path, name, array, affine, message):
    make_decathlon(tmp_path, cases=2)
    array = array.astype(np.float32) if array.dtype == np.int64 else array
    save(tmp_path / name / "case_01.nii.gz", array, affine)
    problems = problems_of(tmp_path)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"case_01: {tmp_path / name / 'case_01.nii.gz'}: ")
    assert re.search(message, problems[0]), problems[0]


def test_labels_stored_as_float_and_affines_that_differ_by_rounding_are_accepted(tmp_path):
    make_decathlon(tmp_path, cases=2)
    save(tmp_path / "labelsTr/case_01.nii.gz", LABEL.astype(np.float32) + 1e-5, AFFINE + 1e-4)
    cases, warnings = scan(read_dataset(tmp_path), processes=0, progress=False)
    assert cases[1].class_voxels.tolist() == np.bincount(LABEL.ravel()).tolist() and not warnings


def test_all_problems_come_in_one_list(tmp_path):
    make_nnunet(tmp_path, 2, cases=6)
    (tmp_path / "imagesTr/case_00_0001.nii.gz").unlink()
    (tmp_path / "imagesTr/case_01_0000.nii.gz").write_bytes(b"not an image")
    (tmp_path / "labelsTr/case_02.nii.gz").unlink()
    for c in range(2):  # the same voxels, packed anew: gzip's header carries another time
        source = gzip.decompress((tmp_path / f"imagesTr/case_03_{c:04d}.nii.gz").read_bytes())
        (tmp_path / f"imagesTr/case_04_{c:04d}.nii.gz").write_bytes(gzip.compress(source, 1, mtime=1))
    problems = problems_of(tmp_path)
    for start in (
        f"case_00: {tmp_path}/imagesTr/case_00_0001.nii.gz: no such file",
        f"case_01: {tmp_path}/imagesTr/case_01_0000.nii.gz: cannot be read",
        f"case_02: {tmp_path}/labelsTr/case_02.nii.gz: no such file",
        "case_03, case_04: identical images",
    ):
        assert sum(problem.startswith(start) for problem in problems) == 1, problems
    assert len(problems) == 4


def test_missing_foreground_and_classes_are_warnings_unless_there_is_none_at_all(tmp_path):
    make_decathlon(tmp_path, cases=2)
    save(tmp_path / "labelsTr/case_01.nii.gz", np.zeros(SHAPE, np.uint8))
    save(tmp_path / "labelsTr/case_00.nii.gz", (LABEL == 1).astype(np.uint8))
    _, warnings = scan(read_dataset(tmp_path), processes=0, progress=False)
    assert warnings == [
        f"case_01: {tmp_path}/labelsTr/case_01.nii.gz: has no foreground; its patches are drawn at random positions.",
        "label 2 'two' occurs in no case",
    ]
    save(tmp_path / "labelsTr/case_00.nii.gz", np.zeros(SHAPE, np.uint8))
    assert problems_of(tmp_path) == ["no case has any foreground: there is nothing to learn"]


def test_one_label_file_for_two_cases_is_found(tmp_path):
    make_decathlon(tmp_path, cases=2)
    describe(
        tmp_path,
        training=[{"image": f"imagesTr/case_0{i}.nii.gz", "label": "labelsTr/case_00.nii.gz"} for i in range(2)],
    )
    assert problems_of(tmp_path) == ["case_00.nii.gz: label file of 2 cases"]


def problem(cases: list[dict], in_channels: int = 1, out_channels: int = 3) -> str:
    with pytest.raises(ValueError) as error:
        check_cases(cases, in_channels, out_channels)
    return str(error.value)


def test_good_data_passes(cases, caplog):
    check_cases(cases, 1, 3)
    assert not caplog.records


def test_invalid_cases_are_returned_with_their_problems(cases, dataset, caplog):
    assert invalid_cases(cases, 1) == {}
    (dataset / "imagesTr" / "box_2.nii.gz").unlink()
    rewrite(dataset / "imagesTr" / "box_4.nii.gz", lambda x: x * 0)
    found = invalid_cases(cases, 1)
    assert list(found) == ["box_2", "box_4"]
    assert "box_2.nii.gz: no such file" in found["box_2"] and "every voxel is zero" in found["box_4"]
    assert set(invalid_cases(cases, 2)) == {case["id"] for case in cases}


def test_missing_image(cases, dataset):
    (dataset / "imagesTr" / "box_2.nii.gz").unlink()
    assert "imagesTr/box_2.nii.gz: no such file" in problem(cases)


def test_truncated_image(cases, dataset):
    file = dataset / "imagesTr" / "box_3.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    assert "imagesTr/box_3.nii.gz: cannot be read as an image" in problem(cases)


def test_no_image_at_all(cases, dataset):
    (dataset / "labelsTr" / "box_3.nii.gz").write_text("hello")
    assert "labelsTr/box_3.nii.gz: cannot be read as an image" in problem(cases)


def test_all_problems_are_listed_together(cases, dataset):
    (dataset / "imagesTr" / "box_0.nii.gz").unlink()
    (dataset / "labelsTr" / "box_5.nii.gz").unlink()
    message = problem(cases)
    assert "2 problem(s) in 6 cases" in message and "box_0" in message and "box_5" in message


def test_grids_of_different_size(cases):
    rewrite(cases[1]["label"], lambda x: x[:-1])
    message = problem(cases)
    assert "labelsTr/box_1.nii.gz: has (33, 38, 30) voxels, but" in message
    assert "imagesTr/box_1.nii.gz has (34, 38, 30)" in message


def test_grids_at_different_places(cases):
    affine = nib.load(cases[1]["image"]).affine.copy()
    affine[0, 3] += 5
    rewrite(cases[1]["label"], lambda x: x, affine)
    message = problem(cases)
    assert "labelsTr/box_1.nii.gz: differs from" in message and "by 5 mm" in message and "affines must agree" in message


def test_grids_that_planning_accepts_are_accepted(cases):
    affine = nib.load(cases[1]["image"]).affine.copy()
    affine[0, 3] += 0.08  # less than a tenth of the smallest voxel edge
    rewrite(cases[1]["label"], lambda x: x, affine)
    check_cases(cases, 1, 3)


@pytest.mark.parametrize(("value", "shown"), [(7, "7"), (1.5, "1.5"), (-1, "-1")])
def test_label_value_outside_the_classes(cases, value, shown):
    rewrite(cases[0]["label"], lambda x: np.where(x == 2, np.float32(value), x))
    message = problem(cases)
    assert re.search(rf"contains the label value\(s\) {re.escape(shown)} \(\d+ voxels\); ", message)
    assert "allowed are the integers 0 to 2 (3 classes, out_channels)" in message


def test_wrong_number_of_channels(cases):
    assert "has 1 channel(s), expected 4 (in_channels)" in problem(cases, in_channels=4)


def test_4d_image_where_3d_is_meant(cases):
    rewrite(cases[0]["image"], lambda x: np.stack([x, x], -1))
    assert "has 2 channel(s), expected 1 (in_channels)" in problem(cases)


def test_values_that_are_no_numbers_and_nothing_but_zeros(cases):
    rewrite(cases[0]["image"], lambda x: np.where(x > 15, np.nan, x))
    rewrite(cases[1]["image"], lambda x: x * 0)
    assert "NaN or infinite" in problem(cases) and "every voxel is zero" in problem(cases)


def test_case_without_foreground_is_a_warning(cases, caplog):
    rewrite(cases[4]["label"], lambda x: x * 0)
    check_cases(cases, 1, 3)
    assert "box_4.nii.gz: has no foreground" in caplog.text


def test_of_stored_cases_channels_and_classes_are_checked_without_reading_them(cases, tmp_path, monkeypatch, caplog):
    settings, cache = {"spacing": [2, 2, 2], "normalization": ["zscore"]}, str(tmp_path / "cache")
    rewrite(cases[4]["label"], lambda x: x * 0)
    preprocessed_cases(cases[:5], [], settings, cache)
    caplog.clear()
    read = []
    plain = checks.read_stored
    monkeypatch.setattr(checks, "read_stored", lambda path: (read.append(path), plain(path))[1])
    check_cases(cases, 1, 3, 1, settings, cache)
    assert sorted(read) == [cases[5]["image"], cases[5]["label"]]
    assert "box_4.nii.gz: has no foreground" in caplog.text and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"box_0: has 1 channel\(s\), expected 2"):
        check_cases(cases[:1], 2, 3, settings=settings, cache_dir=cache)
    with pytest.raises(ValueError, match=r"box_0.nii.gz: contains the label value\(s\) 2; allowed are"):
        check_cases(cases[:1], 1, 2, settings=settings, cache_dir=cache)
    read.clear()
    rewrite(cases[0]["label"], lambda x: x * 9)
    with pytest.raises(ValueError, match=r"box_0.nii.gz: contains the label value\(s\) 9 \(\d+ voxels\), 18"):
        check_cases(cases, 1, 3, 1, settings, cache)
    check_cases(cases[1:2], 1, 3, settings={**settings, "spacing": [1, 1, 1]}, cache_dir=cache)
    assert read == [cases[0]["image"], cases[0]["label"], *[cases[5][key] for key in ("image", "label")]] + [
        cases[1][key] for key in ("image", "label")
    ]


def test_empty_data_list():
    with pytest.raises(ValueError, match="empty"):
        check_cases([], 1, 2)


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the folder .*file/results"):
        check_folders(output_dir=str(tmp_path / "file" / "results"))
    with pytest.raises(ValueError, match="cache_dir must name a folder, got None"):
        check_folders(cache_dir=None)


def test_an_implausible_spacing_is_a_warning_with_the_case(cases, caplog):
    rewrite(cases[1]["image"], lambda x: x, np.diag([0.001, 0.001, 0.001, 1]))
    rewrite(cases[1]["label"], lambda x: x, np.diag([0.001, 0.001, 0.001, 1]))
    check_cases(cases, 1, 3)
    assert "box_1: the voxels are 0.001 x 0.001 x 0.001 mm large, which is implausible" in caplog.text


def test_a_segmentation_replaces_no_input_and_no_file_of_others(cases, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"output_dir: .*box_0.nii.gz, .* and 3 more would be replaced by its own seg"):
        check_outputs(cases, str(dataset / "imagesTr"), overwrite=True)
    out = tmp_path / "out"
    check_outputs(cases, str(out))
    write_segmentation(np.ones((2, 2, 2), np.uint8), out / "box_0.nii.gz", affine=np.eye(4))
    check_outputs(cases, str(out))  # ours
    (out / "box_1.nii.gz").write_bytes(Path(cases[1]["label"]).read_bytes())
    with pytest.raises(ValueError, match="box_1.nii.gz exists and was not written by this package"):
        check_outputs(cases, str(out))
    check_outputs(cases, str(out), overwrite=True)


def test_the_ignore_label_is_allowed_where_there_is_one_and_only_there(tmp_path):
    directory = make_regions(tmp_path / "d", 2)
    cases = read_dataset(directory).cases
    check_cases(cases, 1, 4, ignore_label=4)
    message = r"label value\(s\) 4 .* 0 to 3 \(4 classes, out_channels\)\. If 4 marks .* set ignore_label"
    with pytest.raises(ValueError, match=message):
        check_cases(cases, 1, 4)
    with pytest.raises(ValueError, match=r"label value\(s\) 3 .* 0 to 2 \(3 classes, .*\) and 4, the ignore label"):
        check_cases(cases, 1, 3, ignore_label=4)


def test_the_ignore_label_of_a_stored_case_is_allowed_too(tmp_path):
    cases = read_dataset(make_regions(tmp_path / "d", 2)).cases
    settings = {"spacing": [1, 1, 1], "normalization": ["zscore"], "ignore_label": 4}
    preprocessed_cases(cases, [], settings, tmp_path / "cache")
    check_cases(cases, 1, 4, settings=settings, cache_dir=tmp_path / "cache", ignore_label=4)
    with pytest.raises(ValueError, match=r"label value\(s\) 4; allowed"):
        check_cases(cases, 1, 4, settings=settings, cache_dir=tmp_path / "cache")


def test_a_case_of_which_nothing_is_annotated_or_only_background_is_reported(tmp_path, caplog):
    directory = make_regions(tmp_path / "d", 3)
    label = np.full(BOX_SHAPE, 4, np.uint8)
    save(directory / "labelsTr/case_1.nii.gz", label, BOX_AFFINE)
    label[:4] = 0
    save(directory / "labelsTr/case_2.nii.gz", label, BOX_AFFINE)
    check_cases(read_dataset(directory).cases, 1, 4, ignore_label=4)
    assert "case_1.nii.gz: has no annotated voxel" in caplog.text and "case_2.nii.gz: has no foreground" in caplog.text


@pytest.mark.parametrize(("value", "message"), [(1e-300, "every voxel is zero"), (1e300, "NaN or infinite")])
def test_values_are_checked_as_the_network_sees_them(cases, value, message):
    """In float32, which cannot hold all values of a file."""
    rewrite(cases[1]["image"], lambda x: np.full(x.shape, value))
    with pytest.raises(ValueError, match=f"box_1.nii.gz: .*{message}"):
        check_cases(cases, 1, 3)
