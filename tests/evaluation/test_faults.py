"""
What happens to evaluation and post-processing of folders if something fails half-way.

Nothing finished is lost, nothing unfinished has a final name, the error names the file, and the same command completes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import save
from helpers.segmentations import GRID, make_component_set, write_pairs

from mednext_monai.cli import main
from mednext_monai.evaluation import cases, postprocessing
from mednext_monai.evaluation.postprocessing import Postprocessing, Step

CASES = [f"case_{i}.nii.gz" for i in range(4)]


@pytest.fixture
def folders(tmp_path) -> list[str]:
    return write_pairs(tmp_path, make_component_set(1)[1])


@pytest.fixture
def commands(folders, tmp_path) -> dict[str, list[str]]:
    """The three commands, on the same predictions."""
    decision = tmp_path / "decision.json"
    Postprocessing((Step((1,)), Step((2,)))).write(decision)
    apply = ["apply-postprocessing", folders[0], str(tmp_path / "out"), "--decision", str(decision)]
    return {
        "evaluate": ["evaluate-folder", *folders, "--output_dir", str(tmp_path / "out")],
        "find": ["find-postprocessing", *folders, "--output", str(tmp_path / "out/found.json")],
        "apply": apply,
    }


def run(command: list[str], processes: int = 1) -> int:
    return main([*command, "--processes", str(processes)])


def contents(directory: Path) -> dict[str, bytes]:
    """The files of a folder by name, without hidden ones, which are unfinished."""
    return {file.name: file.read_bytes() for file in sorted(directory.glob("[!.]*"))}


def on_replacing(name: str, action, monkeypatch) -> None:
    """Do something when a complete file is about to get its final name."""
    plain = os.replace

    def replace(source, target):
        if Path(target).name == name:
            action()
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)


def killed_before(name: str, command: list[str]) -> None:
    """Run a command in a process that is killed when a file is about to get its final name."""

    def child() -> None:
        torch.set_num_threads(1)  # the threads of this process do not survive the fork
        on_replacing(name, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
        run(command)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


EXPECTED = {
    "evaluate": ["metrics.csv", "metrics.json"],
    "find": ["found.json"],
    "apply": [*CASES, "postprocessing.json"],
}


@pytest.mark.parametrize(
    ("kind", "name", "left"),
    [
        ("evaluate", "metrics.csv", []),
        ("evaluate", "metrics.json", ["metrics.csv"]),
        ("find", "found.json", []),
        ("apply", "postprocessing.json", []),
        ("apply", "case_2.nii.gz", ["case_0.nii.gz", "case_1.nii.gz", "postprocessing.json"]),
    ],
)
def test_a_command_that_was_killed_is_completed_by_itself(commands, tmp_path, kind, name, left):
    output = tmp_path / "out"
    killed_before(name, commands[kind])
    found = contents(output)
    assert list(found) == left
    assert run(commands[kind]) == 0
    whole = contents(output)
    assert list(whole) == EXPECTED[kind]
    assert all(whole[file] == found[file] for file in left)  # what was there was whole
    killed_before(name, commands[kind])
    assert contents(output) == whole  # nothing finished is lost


def test_a_part_that_was_killed_leaves_the_others(commands, tmp_path):
    output, command = tmp_path / "out", commands["evaluate"]
    assert run(command) == 0
    whole = {name: content for name, content in contents(output).items() if not (output / name).unlink()}
    assert run([*command, "--part", "1", "--parts", "2"]) == 0
    killed_before("metrics.part_0.json", [*command, "--part", "0", "--parts", "2"])
    assert list(contents(output)) == ["metrics.part_1.json"]
    killed_before("metrics.csv", [*command, "--part", "0", "--parts", "2"])  # its rows are there, the tables are not
    assert run([*command, "--part", "1", "--parts", "2"]) == 0
    assert whole.items() <= contents(output).items()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("evaluate", "metrics.csv"), ("evaluate", "metrics.json"), ("find", "found.json"), ("apply", "case_1.nii.gz")],
)
def test_a_full_disk_is_named_with_the_file(commands, tmp_path, capsys, kind, name):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run(commands[kind]) == 0
    before = contents(tmp_path / "out")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patched:
        on_replacing(name, fail, patched)
        assert run(commands[kind]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "the disk is full" in error[-1] and str(tmp_path / "out" / name) in error[-1]
    after = contents(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    assert after == before
    assert run(commands[kind]) == 0 and contents(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["evaluate", "find", "apply"])
def test_a_damaged_file_among_many_is_named_last(commands, folders, tmp_path, capsys, kind):
    damaged = Path(folders[0], "case_2.nii.gz")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert run(commands[kind], 2) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert str(damaged) in last and "cannot be read" in last
    left = {"evaluate": EXPECTED["evaluate"], "find": [], "apply": [*CASES[:2], CASES[3], "postprocessing.json"]}
    assert list(contents(tmp_path / "out")) == left[kind]
    if kind == "evaluate":
        assert "case_2" not in (tmp_path / "out/metrics.csv").read_text()
    damaged.write_bytes(whole)
    assert run(commands[kind]) == 0 and list(contents(tmp_path / "out")) == EXPECTED[kind]


@pytest.mark.parametrize("kind", ["evaluate", "find", "apply"])
def test_a_file_that_is_replaced_half_way_is_named(commands, folders, tmp_path, capsys, monkeypatch, kind):
    """Its row would belong to either of two files."""
    changed = Path(folders[0], "case_1.nii.gz")
    plain = cases.read_label

    def read(path):
        found = plain(path)
        if Path(path).name == "case_3.nii.gz":  # after case_1 has been read
            save(changed, np.ones((10, 9, 6), np.uint8), GRID)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(cases, "read_label", read)
        patched.setattr(postprocessing, "read_label", read)
        assert run(commands[kind]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{changed}: was changed while it was in use" in last
    if kind == "evaluate":
        assert "case_1" not in (tmp_path / "out/metrics.csv").read_text()
    if kind == "find":
        assert not (tmp_path / "out/found.json").exists()
    assert run(commands[kind]) == 0 and list(contents(tmp_path / "out")) == EXPECTED[kind]


@pytest.mark.parametrize("kind", ["evaluate", "find", "apply"])
def test_a_worker_process_that_dies_costs_its_case_only(commands, folders, tmp_path, capsys, monkeypatch, kind):
    parent, plain = os.getpid(), cases.read_label

    def read(path):
        if Path(path).name == "case_1.nii.gz" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(path)

    with monkeypatch.context() as patched:
        patched.setattr(cases, "read_label", read)
        patched.setattr(postprocessing, "read_label", read)
        assert run(commands[kind], 2) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{folders[0]}/case_1.nii.gz: the process that worked on this case was killed" in last
    done = contents(tmp_path / "out")
    if kind == "evaluate":
        rows = done["metrics.csv"].decode()
        assert all((case in rows) == (case != "case_1") for case in ("case_0", "case_1", "case_2", "case_3"))
    elif kind == "apply":
        assert list(done) == ["case_0.nii.gz", "case_2.nii.gz", "case_3.nii.gz", "postprocessing.json"]
    else:
        assert not done
    assert run(commands[kind], 2) == 0 and list(contents(tmp_path / "out")) == EXPECTED[kind]


def test_files_of_others_are_not_replaced_by_a_decision(commands, tmp_path, capsys):
    for kind, name in (("find", "found.json"), ("apply", "postprocessing.json")):
        file = tmp_path / "out" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"for_which_classes": [1], "min_valid_object_sizes": "None"}')
        before = contents(tmp_path / "out")
        assert run(commands[kind]) == 1
        assert f"{file} exists and is not a decision of this package" in capsys.readouterr().err
        assert contents(tmp_path / "out") == before
        assert run([*commands[kind], "--overwrite", "true"]) == 0 and contents(tmp_path / "out") != before
