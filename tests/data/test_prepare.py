"""A data set is preprocessed in advance, in parts and by several computers, and a training finds all of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import make_boxes, rewrite
from helpers.processes import wait_for

from mednext_monai.data import CasesError, prepare_cases, preprocessed_cases, store, training_cases
from mednext_monai.preprocessing.case import preprocess_case

SETTINGS = {"spacing": [2, 2, 2], "normalization": ["zscore"]}


def prepare(dataset, cache, processes=1, **options):
    prepare_cases(str(dataset), 1, 3, SETTINGS, str(cache), processes=processes, **options)


def test_a_training_finds_what_was_prepared(dataset, tmp_path, prepared, caplog):
    caplog.set_level("INFO", "mednext_monai.data.prepare")
    prepare(dataset, tmp_path / "cache")
    assert prepared == [f"box_{i}" for i in range(6)] and "6 cases are stored in" in caplog.text
    sides = [training_cases(str(dataset), 1, section) for section in ("training", "validation")]
    found = preprocessed_cases(*sides, SETTINGS, str(tmp_path / "cache"))
    assert len(found["training"]) + len(found["validation"]) == len(prepared) == 6


def test_parts_have_no_case_in_common_and_are_all(dataset, tmp_path, prepared):
    parts = []
    for part in range(4):
        prepare(dataset, tmp_path / "cache", part=part, parts=4)
        parts.append(prepared.copy())
        prepared.clear()
    assert parts == [["box_0", "box_4"], ["box_1", "box_5"], ["box_2"], ["box_3"]]
    prepare(dataset, tmp_path / "cache", part=6, parts=7)  # more parts than cases: nothing to do
    with pytest.raises(ValueError, match="part must be from 0 to 3 if parts is 4, got 4"):
        prepare(dataset, tmp_path / "cache", part=4, parts=4)


def test_a_bad_case_is_reported_at_the_end_and_the_others_are_stored(dataset, tmp_path, prepared):
    """Also one that preprocessing alone would accept: the files are checked as a training checks them."""
    (dataset / "imagesTr" / "box_0.nii.gz").write_bytes(b"no image")
    (dataset / "labelsTr" / "box_3.nii.gz").unlink()
    rewrite(str(dataset / "labelsTr" / "box_1.nii.gz"), lambda label: label + 1)
    rewrite(str(dataset / "imagesTr" / "box_4.nii.gz"), lambda image: np.where(image > 15, np.nan, image))
    with pytest.raises(CasesError) as error:
        prepare(dataset, tmp_path / "cache")
    message = str(error.value)
    assert "4 of 6 cases cannot be preprocessed; the other 2 are stored" in message
    for part in (
        "box_0.nii.gz: cannot be read",
        "box_3.nii.gz is not a file",
        "allowed are the integers 0 to 2",
        "NaN",
    ):
        assert part in message
    shutil.copy(dataset / "labelsTr" / "box_2.nii.gz", dataset / "labelsTr" / "box_3.nii.gz")
    prepared.clear()
    with pytest.raises(CasesError, match="3 of 6 cases"):
        prepare(dataset, tmp_path / "cache")
    assert {"box_2", "box_5"}.isdisjoint(prepared)


def test_a_stored_case_that_does_not_suit_the_plan_is_reported(dataset, tmp_path):
    prepare(dataset, tmp_path / "cache")
    with pytest.raises(CasesError, match=r"6 of 6 cases .*(.*\n)*.*box_5.nii.gz: contains the label value\(s\) 2"):
        prepare_cases(str(dataset), 1, 2, SETTINGS, str(tmp_path / "cache"))


SLOWLY = """
import json, sys, time
from mednext_monai.data import prepare_cases, store

if __name__ == "__main__":
    dataset, cache, settings, options = json.loads(sys.argv[1])
    write = store._write_json
    def slow(path, content):
        time.sleep(0.15)  # the arrays are written, the marker is not
        write(path, content)
    store._write_json = slow
    prepare_cases(dataset, 1, 3, settings, cache, processes=1, **options)
"""


def start(tmp_path: Path, dataset: Path, cache: Path, before: str = "", **options) -> subprocess.Popen:
    """Start a process that preprocesses slowly, after a command of the shell."""
    script = tmp_path / "slowly.py"
    script.write_text(SLOWLY)
    command = [sys.executable, str(script), json.dumps([str(dataset), str(cache), SETTINGS, options])]
    if before:
        command = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def bind_mounts() -> bool:
    """Return whether this user may mount a folder at another place."""
    try:
        command = ["unshare", "-m", "mount", "--bind", "/tmp", "/tmp"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize("mounted", ["link", "mount"])
@pytest.mark.parametrize(
    "options", [({}, {}), ({"part": 0, "parts": 2}, {"part": 1, "parts": 2})], ids=["all", "parts"]
)
def test_two_processes_with_two_paths_to_one_folder_are_killed_and_a_rerun_completes(tmp_path, mounted, options):
    dataset, one, other = make_boxes(tmp_path / "data"), tmp_path / "one", tmp_path / "other"
    one.mkdir()
    before = ""
    if mounted == "mount":
        if not bind_mounts():
            pytest.skip("this user may not mount folders")
        other.mkdir()
        before = f"mount --bind {one} {other}"
    else:
        other.symlink_to(one)
    processes = [start(tmp_path, dataset, one, **options[0]), start(tmp_path, dataset, other, before, **options[1])]
    wait_for(lambda: len(list(one.glob("v2-*/box_*/*/case.json"))) >= 2)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    markers = {file: file.stat().st_mtime_ns for file in one.glob("v2-*/box_*/*/case.json")}
    assert 2 <= len(markers) < 6, "killed too late"
    for case in one.glob("v2-*/box_*/*/"):
        assert store._is_complete(case)  # under its final name
    prepare(dataset, one)
    cases = training_cases(str(dataset), "all")
    stored = preprocessed_cases(cases, [], SETTINGS, str(other))["training"]
    for case, paths in zip(cases, stored):
        image, label, affine = store._read(case)
        expected = preprocess_case(image, label, affine, SETTINGS)
        np.testing.assert_array_equal(np.load(paths["image"]), expected.image)
        np.testing.assert_array_equal(np.load(paths["label"]), expected.label[None])
    assert not list(one.glob("v2-*/.tmp-*"))
    assert all(file.stat().st_mtime_ns == time for file, time in markers.items())  # finished ones stay


def test_two_processes_share_the_cases(tmp_path):
    """Each is stored once, by one of the two."""
    dataset, cache = make_boxes(tmp_path / "data"), tmp_path / "cache"
    processes = [start(tmp_path, dataset, cache) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    folders = list(cache.glob("v2-*/box_*/*/"))
    assert len(folders) == 6 and all(map(store._is_complete, folders))
    assert not list(cache.glob("v2-*/.tmp-*"))


FULL = """
import sys
from mednext_monai.data import CasesError, prepare_cases, store

if __name__ == "__main__":
    store._announce_space = lambda *args: None  # another program takes the space after the check
    settings = {"spacing": [0.5, 0.5, 0.5], "normalization": ["zscore"]}
    try:
        prepare_cases(sys.argv[1], 1, 3, settings, sys.argv[2], processes=2)
    except CasesError as error:
        print(error)
        sys.exit(1)
"""


def test_a_full_disk_is_named_and_nothing_half_written_is_left(tmp_path):
    if not bind_mounts():
        pytest.skip("this user may not mount folders")
    dataset, cache = make_boxes(tmp_path / "data"), tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "full.py").write_text(FULL)
    shell = f'mount -t tmpfs -o size=6m none {cache} && "$@"; status=$?; cd {cache}; find . -type f; exit $status'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, str(tmp_path / "full.py"), dataset, cache]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1, result.stderr
    assert "the disk is full" in result.stdout and "are free: '" in result.stdout
    files = [line for line in result.stdout.splitlines() if line.startswith("./")]
    complete = {os.path.dirname(file) for file in files if file.endswith("case.json")}
    arrays = [file for file in files if file.endswith(".npy")]
    assert 1 <= len(complete) < 6 and len(arrays) == 2 * len(complete), files
    assert all(os.path.dirname(file) in complete for file in arrays)


def test_a_limit_on_the_size_of_a_file_is_named_with_the_folder(dataset, tmp_path):
    """NumPy reports "1000 requested and 512 written" alone."""
    script = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)); "
    script += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    (tmp_path / "full.py").write_text(FULL)
    command = [sys.executable, "-c", script, str(tmp_path / "full.py"), str(dataset), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1 and "6 of 6 cases cannot be preprocessed:" in result.stdout, result.stderr
    assert "cannot be written" in result.stdout and "/.tmp-" in result.stdout
    assert not list((tmp_path / "cache").glob("v2-*/box_*/*/")) and not list((tmp_path / "cache").glob("v2-*/.tmp-*"))
