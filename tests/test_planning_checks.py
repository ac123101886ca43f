"""Everything wrong with a data set is found before planning, in one list with file names, and nothing is written."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.datasets import AFFINE, SHAPE, describe, make_case, make_decathlon, make_nnunet, save

from mednext_monai.data import DatasetError, read_dataset
from mednext_monai.planning import plan, scan


def problems_of(directory) -> list[str]:
    with pytest.raises(DatasetError) as error:
        scan(read_dataset(directory), processes=0, progress=False)
    return error.value.problems


def test_a_sound_data_set_has_no_problems_and_processes_do_not_matter(tmp_path):
    dataset = read_dataset(make_decathlon(tmp_path))
    cases, warnings = scan(dataset, processes=0, progress=False)
    assert warnings == [] and [case.id for case in cases] == [case["id"] for case in dataset.cases]
    parallel, _ = scan(dataset, processes=2, progress=False)
    for one, other in zip(cases, parallel):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))


LABEL = make_case(0)[1]
TURNED = AFFINE @ np.diag([1, 1, 1.02, 1])  # 0.44 mm off at the far end, of voxels of 1 mm


@pytest.mark.parametrize(
    "name, array, affine, message",
    [
        ("labelsTr", np.where(LABEL == 2, 7, LABEL), AFFINE, r"label values 7 \(\d+ voxels\) are not among .* 0 to 2"),
        ("labelsTr", LABEL.astype(np.int16) * -1, AFFINE, r"label values -2 .*-1 .*are not among"),
        ("labelsTr", LABEL.astype(np.float32) * 0.7, AFFINE, r"voxels are not whole numbers, for example 0\.7, 1\.4"),
        ("labelsTr", np.where(LABEL == 2, np.nan, LABEL), AFFINE, "label voxels are NaN or infinite"),
        ("labelsTr", LABEL[:-1], AFFINE, r"shape \(19, 18, 12\) differs from \(20, 18, 12\) of imagesTr"),
        ("labelsTr", LABEL, TURNED, r"a corner of the volume 0\.44 mm from where imagesTr.*0\.1 mm, 0\.1 voxels, are"),
        ("labelsTr", np.stack([LABEL] * 2, -1), AFFINE, "has 2 channels, a label must have one"),
        ("imagesTr", np.full(SHAPE, np.inf, np.float32), AFFINE, "4320 of 4320 voxels are NaN or infinite"),
        ("imagesTr", np.zeros(SHAPE, np.float32), AFFINE, "every voxel is zero"),
        ("imagesTr", make_case(0, 3)[0], AFFINE, r"has 3 channels, dataset.json names 1 channel \(MRI\)"),
        ("imagesTr", make_case(0)[0][0, :, :, 0], AFFINE, "is no volume: expected three spatial axes, got shape"),
    ],
)
def test_a_bad_file_is_named_with_what_was_found(tmp_path, name, array, affine, message):
    make_decathlon(tmp_path, cases=2)
    array = array.astype(np.float32) if array.dtype == np.int64 else array
    save(tmp_path / name / "case_01.nii.gz", array, affine)
    problems = problems_of(tmp_path)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"case_01: {name}/case_01.nii.gz: ")
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
        "case_00: imagesTr/case_00_0001.nii.gz: no such file",
        "case_01: imagesTr/case_01_0000.nii.gz: cannot be read",
        "case_02: labelsTr/case_02.nii.gz: no such file",
        "case_03, case_04: the same image",
    ):
        assert sum(problem.startswith(start) for problem in problems) == 1, problems
    assert len(problems) == 4


def test_missing_foreground_and_classes_are_warnings_unless_there_is_none_at_all(tmp_path):
    make_decathlon(tmp_path, cases=2)
    save(tmp_path / "labelsTr/case_01.nii.gz", np.zeros(SHAPE, np.uint8))
    save(tmp_path / "labelsTr/case_00.nii.gz", (LABEL == 1).astype(np.uint8))
    _, warnings = scan(read_dataset(tmp_path), processes=0, progress=False)
    assert warnings == [
        "case_01: labelsTr/case_01.nii.gz: no foreground, all voxels are background",
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


def test_the_command_prints_the_list_fails_and_writes_nothing(tmp_path):
    make_decathlon(tmp_path / "data", cases=3)
    save(tmp_path / "data/labelsTr/case_02.nii.gz", LABEL + 3)
    (tmp_path / "data/imagesTr/case_01.nii.gz").unlink()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "mednext_monai", "plan", str(tmp_path / "data")]
    done = subprocess.run([*command, "--output", str(tmp_path / "out/my.json")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "2 problems found" in done.stderr and "Traceback" not in done.stderr
    assert "case_01: imagesTr/case_01.nii.gz: no such file" in done.stderr
    assert "case_02: labelsTr/case_02.nii.gz: label values" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    make_decathlon(tmp_path / "data", cases=1)
    with pytest.raises(ValueError, match="no directory .*nowhere"):
        plan(tmp_path / "data", tmp_path / "nowhere" / "my.json")
    with pytest.raises(ValueError, match="must be a .json file, got"):
        plan(tmp_path / "data", tmp_path / "my.yaml")
    with pytest.raises(ValueError, match="batch_size must be a positive whole number, got 0"):
        plan(tmp_path / "data", tmp_path / "my.json", batch_size=0)
    with pytest.raises(ValueError, match="gpu_memory must be a positive number of GiB, got -1"):
        plan(tmp_path / "data", tmp_path / "my.json", gpu_memory=-1)
    with pytest.raises(ValueError, match="processes must be 0 or more, got -1"):
        plan(tmp_path / "data", tmp_path / "my.json", processes=-1)
