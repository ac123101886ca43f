"""Probabilities on disk: what is stored is written, in parts; other files and full disks are recognized."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mednext_monai.data import check_outputs, probabilities
from mednext_monai.data.probabilities import (
    DiskProbabilities,
    ProbabilityStore,
    is_our_probabilities,
    write_probabilities,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(probabilities, "BLOCK_VOXELS", 60)


def test_what_is_stored_is_written_with_background_around_it(tmp_path):
    values = np.random.RandomState(0).dirichlet(np.ones(3), (7, 4, 5)).transpose(3, 0, 1, 2)[:, 1:6, 2:, :]
    disk = DiskProbabilities(tmp_path, (7, 4, 5))
    for index, part in enumerate(values):
        disk.volume(index)[1:6, 2:, :] = part
    write_probabilities(tmp_path / "new" / "case.npz", disk)
    expected = np.zeros((3, 7, 4, 5))
    expected[0] = 1
    expected[:, 1:6, 2:, :] = values
    with np.load(tmp_path / "new" / "case.npz") as file:
        assert file.files == ["probabilities"]
        found = file["probabilities"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    np.testing.assert_array_equal(disk.class_map(), found.argmax(0))
    assert abs(found.astype(float).sum(0) - 1).max() <= 2**-11 + 3 * 2**-25


def test_sums_are_divided_by_their_total_when_they_are_read(tmp_path):
    first, second = np.random.RandomState(0).dirichlet(np.ones(4), (2, 3, 4, 5)).transpose(0, 4, 1, 2, 3)
    sums = DiskProbabilities(tmp_path, (3, 4, 5), np.float32, total=3)
    for index in range(4):
        sums.volume(index)[1:] = first[index, 1:]
        sums.volume(index)[1:] += 2 * second[index, 1:]
    mean = (first + 2 * second) / 3
    mean[:, 0] = np.array([1, 0, 0, 0])[:, None, None]
    np.testing.assert_allclose(np.concatenate(list(sums.blocks())).reshape(mean.shape), mean, rtol=1e-6)
    np.testing.assert_array_equal(sums.class_map(), mean.argmax(0))


def test_classes_come_in_their_order(tmp_path):
    with pytest.raises(ValueError, match="class 1 cannot follow class -1"):
        DiskProbabilities(tmp_path, (1, 1, 1)).volume(1)


def test_the_file_has_no_name_and_vanishes_with_a_killed_process(tmp_path):
    script = (
        "import os, signal, sys; from mednext_monai.data.probabilities import DiskProbabilities\n"
        "disk = DiskProbabilities(sys.argv[1], (64, 64, 64)); disk.volume(0)[...] = 1\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")])
    assert result.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "out") == []


def test_a_full_disk_is_an_error_before_it_is_written_to(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"the disk is full: 0 bytes .* 250 more are needed, \d+ are free") as error:
        DiskProbabilities(tmp_path, (5, 5, 5)).volume(0)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path)


def test_without_a_reservation_zeros_are_written(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    disk = DiskProbabilities(tmp_path, (150, 100, 101))
    disk.volume(0)
    assert not disk.volume(1).any() and disk.volume(0).all()


def test_a_store_forgets_what_was_put_before_what_is_taken(tmp_path):
    store = ProbabilityStore(tmp_path)
    disks = {name: DiskProbabilities(tmp_path, (1, 1, 1)) for name in "abc"}
    for name, disk in disks.items():
        store.put(name, disk)
    assert store.take("b") is disks["b"]
    with pytest.raises(ValueError, match="a: its probabilities were not kept"):
        store.take("a")
    assert store.take("c") is disks["c"]


def test_files_of_others_are_recognized(tmp_path):
    disk = DiskProbabilities(tmp_path, (1, 1, 1))
    disk.volume(0)
    write_probabilities(tmp_path / "ours.npz", disk)
    np.savez_compressed(tmp_path / "theirs.npz", probabilities=np.ones((1, 1, 1, 1)))
    (tmp_path / "text.npz").write_text("PK")
    found = [is_our_probabilities(tmp_path / name) for name in ("ours.npz", "theirs.npz", "text.npz", "none.npz")]
    assert found == [True, False, False, False]
    assert zipfile.ZipFile(tmp_path / "ours.npz").testzip() is None


def test_only_our_files_may_be_replaced(tmp_path):
    cases = [{"id": "case", "image": "image.nii.gz"}]
    disk = DiskProbabilities(tmp_path, (1, 1, 1))
    disk.volume(0)
    write_probabilities(tmp_path / "a" / "case.npz", disk)
    check_outputs(cases, str(tmp_path / "a"), ending=".npz")
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b" / "case.npz", probabilities=np.ones(1))
    folders = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match="b/case.npz exists and was not written by this package"):
        check_outputs(cases, folders, ending=".npz")
    check_outputs(cases, folders, overwrite=True, ending=".npz")
