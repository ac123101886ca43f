"""A file is there as a whole, old or new, and what keeps it from being written is said."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple

import pytest
import torch

from mednext_monai.files import DEEPEST, atomic_path, read_json, write_atomically
from mednext_monai.weights import write_checkpoint


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "new" / "a.txt", b"old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"old" and os.listdir(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to("/dev/null")
    with pytest.raises(FileExistsError, match="target exists and is not a regular file"):
        write_atomically(target, b"x")
    assert target.exists() and not target.is_file()


@pytest.mark.parametrize("library", [False, True], ids=["the system says so", "a library fails"])
def test_a_full_disk_is_named_with_the_file_and_the_old_one_stays(tmp_path, monkeypatch, library):
    path = tmp_path / "last.pt"
    write_checkpoint({"a": torch.zeros(2)}, path)
    before = path.read_bytes()

    def fail(content, file):
        file.write_bytes(b"12345")
        raise RuntimeError("unexpected pos 64 vs 0") if library else OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
    with pytest.raises(OSError, match=r"the disk is full: 5 bytes are written, more are needed, 0 are free: .*last.pt"):
        write_checkpoint({"a": torch.ones(2)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def test_the_file_that_is_replaced_can_be_kept_under_another_name(tmp_path):
    path, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    for content in (b"1", b"2", b"3"):
        with atomic_path(path, previous) as temporary:
            temporary.write_bytes(content)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    with pytest.raises(RuntimeError), atomic_path(path, previous) as temporary:
        temporary.write_bytes(b"4")
        raise RuntimeError
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["last.previous.pt", "last.pt"]


def test_json_is_read_with_or_without_a_mark_and_what_is_wrong_names_the_file(tmp_path):
    path = tmp_path / "a.json"
    for content in (b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}'):
        path.write_bytes(content)
        assert read_json(path) == {"a": 1}
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    read_json(path)
    for content in (b"", b"{", b'"\xe4"', b"[" * 100_000, b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.json: not valid JSON in UTF-8: "):
            read_json(path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no such file"):
        read_json(tmp_path)


def test_names_of_temporary_files_are_unique(tmp_path):
    """Processes of two computers may have one number."""
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as other:
        assert one != other and {one.parent, other.parent} == {tmp_path}
        one.touch()
        other.touch()
