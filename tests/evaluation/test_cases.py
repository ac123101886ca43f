"""Pairing of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import AFFINE, save

from mednext_monai.evaluation.cases import Pair, files_by_case, pair_cases, read_pair

ARRAY = np.ones((3, 4, 5), np.uint8)


def test_files_are_paired_by_case_whatever_their_ending(tmp_path):
    save(tmp_path / "p/a.nii.gz", ARRAY)
    save(tmp_path / "p/b.nii", ARRAY)
    save(tmp_path / "r/a.nii", ARRAY)
    save(tmp_path / "r/b.nii.gz", ARRAY)
    save(tmp_path / "r/.b.nii.gz", ARRAY)  # an unfinished file of another process
    (tmp_path / "p/plans.pkl").write_text("")
    pairs, problems = pair_cases(tmp_path / "p", tmp_path / "r")
    assert [Path(path).name for pair in pairs.values() for path in pair] == ["a.nii.gz", "a.nii", "b.nii", "b.nii.gz"]
    assert list(pairs) == ["a", "b"] and not problems


def test_cases_of_one_folder_only_are_named(tmp_path):
    for name in ("p/a", "p/extra", "r/a", "r/missing"):
        save(tmp_path / f"{name}.nii.gz", ARRAY)
    pairs, problems = pair_cases(tmp_path / "p", tmp_path / "r")
    assert list(pairs) == ["a"] and set(problems) == {"extra", "missing"}
    assert problems["extra"].endswith(f"extra.nii.gz: no label in {tmp_path / 'r'}.")
    assert problems["missing"].endswith(f"missing.nii.gz: no prediction in {tmp_path / 'p'}.")
    assert set(pair_cases(tmp_path / "p", tmp_path / "r", allow_missing=True)[1]) == {"extra"}


def test_folders_that_cannot_be_paired(tmp_path):
    save(tmp_path / "p/a.nii.gz", ARRAY)
    save(tmp_path / "r/b.nii.gz", ARRAY)
    with pytest.raises(ValueError, match="no case in common: files are paired by name, as in a.nii.gz and b.nii.gz"):
        pair_cases(tmp_path / "p", tmp_path / "r")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        pair_cases(tmp_path / "absent", tmp_path / "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: contains no file ending in \.nii\.gz"):
        files_by_case(tmp_path / "empty")
    save(tmp_path / "p/a.nii", ARRAY)
    with pytest.raises(ValueError, match="a.nii and a.nii.gz are files of the same case"):
        files_by_case(tmp_path / "p")


def test_a_pair_must_have_one_grid(tmp_path):
    save(tmp_path / "p.nii.gz", ARRAY)
    save(tmp_path / "r.nii.gz", ARRAY)
    pair = Pair(str(tmp_path / "p.nii.gz"), str(tmp_path / "r.nii.gz"))
    prediction, reference, spacing = read_pair(pair)
    assert (prediction == 1).all() and reference.shape == (3, 4, 5) and spacing == (1, 1, 2)
    save(tmp_path / "p.nii.gz", ARRAY[:2])
    with pytest.raises(ValueError, match=r"p.nii.gz: has \(2, 4, 5\) voxels, but .*r.nii.gz has \(3, 4, 5\)"):
        read_pair(pair)
    save(tmp_path / "p.nii.gz", ARRAY, AFFINE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(ValueError, match="p.nii.gz: differs from .*r.nii.gz by .* mm at a corner"):
        read_pair(pair)
