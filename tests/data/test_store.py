"""A case is prepared once, anew when data or settings change, never half, and read without being loaded."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.datasets import CASE_AFFINE as AFFINE
from helpers.datasets import write_case
from helpers.processes import children_of, is_running, spawn, wait_for

from mednext_monai.data import (
    CasesError,
    preprocessed_cases,
    store,
    training_cases,
)
from mednext_monai.data.store import preprocess_dataset, settings_folder
from mednext_monai.preprocessing.case import preprocess_case
from mednext_monai.preprocessing.foreground import foreground_locations
from mednext_monai.preprocessing.geometry import Geometry

PLAN = {"spacing": [1, 1, 1], "normalization": ["masked_zscore"]}


@pytest.fixture
def cases(tmp_path):
    return [write_case(tmp_path, f"case_{seed}", seed) for seed in range(3)]


def run(cases, cache, plan=PLAN, **kwargs):
    return preprocess_dataset(cases, plan, cache, **{"num_workers": 0, "progress": False, **kwargs})


def test_stored_case_equals_the_computation(cases, tmp_path):
    stored = run(cases, tmp_path / "cache")
    assert [case["id"] for case in stored] == ["case_0", "case_1", "case_2"]
    json.dumps(stored)  # plain text, as a data list must be
    image, label = (np.load(stored[1][key], mmap_mode="r") for key in ("image", "label"))
    found = {"image": image, "label": label}
    image = nibabel.load(cases[1]["image"]).get_fdata(dtype=np.float32)
    label = np.asanyarray(nibabel.load(cases[1]["label"]).dataobj).astype(np.int8)
    expected = preprocess_case(image[None], label, AFFINE, PLAN)
    for array, truth in ((found["image"], expected.image), (found["label"], expected.label[None])):
        assert array.dtype == truth.dtype and array.flags.c_contiguous
        np.testing.assert_array_equal(array, truth)
    assert found["image"].dtype == np.float32 and found["label"].dtype == np.int8
    info = json.loads(open(stored[1]["info"]).read())
    assert Geometry.from_dict(info["geometry"]) == expected.geometry
    locations = foreground_locations(expected.label)
    with np.load(stored[1]["foreground"]) as file:
        assert file.files == ["1"] and locations.keys() == {1}
        np.testing.assert_array_equal(file["1"], locations[1])
    assert info["voxels_per_label"]["1"] == (expected.label == 1).sum()


def test_a_slice_that_is_read_alone_is_one_piece_of_the_file(cases, tmp_path):
    volumes = run(cases[:1], tmp_path / "cache")[0]
    for axis in range(3):
        stored = run(cases[:1], tmp_path / "cache", {**PLAN, "slice_axis": axis})[0]
        assert os.path.dirname(os.path.dirname(stored["info"])) != os.path.dirname(os.path.dirname(volumes["info"]))
        for key in ("image", "label"):
            array = np.load(stored[key], mmap_mode="r")
            np.testing.assert_array_equal(array, np.load(volumes[key]))
            assert array.flags.f_contiguous if axis == 2 else array.flags.c_contiguous
    with pytest.raises(ValueError, match="slice_axis must be 0, 1, 2 or None, got 3"):
        run(cases[:1], tmp_path / "cache", {**PLAN, "slice_axis": 3})


def test_parallel_processes_store_the_same(cases, tmp_path, capfd, caplog):
    caplog.set_level("WARNING", "mednext_monai.data.store")  # a log that is shown says it instead
    here, there = run(cases, tmp_path / "a"), run(cases, tmp_path / "b", num_workers=2, progress=True)
    for one, other in zip(here, there):
        for key in ("image", "label", "foreground"):
            assert open(one[key], "rb").read() == open(other[key], "rb").read()
    output = "".join(capfd.readouterr())
    assert "3 cases to preprocess into" in output and "free" in output and "3/3" in output


def test_unlabeled_case(tmp_path):
    stored = run([write_case(tmp_path, "test_1", 0, labeled=False)], tmp_path / "cache")[0]
    assert stored["label"] is None and stored["foreground"] is None
    assert np.load(stored["image"]).shape == (1, 12, 12, 18)
    assert sorted(os.listdir(os.path.dirname(stored["info"]))) == ["case.json", "image.npy"]


def test_nothing_is_done_twice(cases, tmp_path, prepared):
    run(cases, tmp_path / "cache")
    assert run(cases[:2], tmp_path / "cache") == run(cases, tmp_path / "cache")[:2]
    assert prepared == ["case_0", "case_1", "case_2"]


def test_changed_content_is_prepared_anew(cases, tmp_path, prepared):
    old = np.load(run(cases, tmp_path / "cache")[1]["image"], mmap_mode="r")
    before = old.copy()
    os.utime(cases[0]["image"])  # touched, same content
    write_case(tmp_path, "case_1", seed=11)
    label = np.asanyarray(nibabel.load(cases[2]["label"]).dataobj).copy()
    label[9, 9, 8] = 1
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), cases[2]["label"])
    prepared.clear()
    stored = run(cases, tmp_path / "cache")
    assert prepared == ["case_1", "case_2"]
    assert not np.array_equal(np.load(stored[1]["image"]), before)
    np.testing.assert_array_equal(old, before)  # a reader keeps what it had opened
    prepared.clear()
    run(cases, tmp_path / "cache")
    assert prepared == []


def test_same_size_and_times_set_back_are_still_noticed(cases, tmp_path, prepared):
    path = str(tmp_path / "case_0.nii")
    nibabel.save(nibabel.load(cases[0]["image"]), path)
    case = {**cases[0], "image": path}
    run([case], tmp_path / "cache")
    state = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x40")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    run([case], tmp_path / "cache")
    assert prepared == ["case_0", "case_0"]


def test_two_data_sets_with_equal_ids_share_a_cache(tmp_path):
    """Each run keeps its own arrays, whichever data set was prepared last."""
    sets = [[write_case(tmp_path / name, "case", seed)] for name, seed in (("a", 1), ("b", 2))]
    cache = str(tmp_path / "cache")
    first, second = (preprocessed_cases(cases, [], PLAN, cache)["training"][0] for cases in sets)
    arrays = [np.load(stored["image"]) for stored in (first, second)]
    assert arrays[0].shape != arrays[1].shape or not np.array_equal(*arrays)
    for cases, stored, array in zip(sets, (first, second), arrays):
        assert preprocessed_cases(cases, [], PLAN, cache)["training"][0] == stored
        np.testing.assert_array_equal(np.load(stored["image"]), array)
        image = nibabel.load(cases[0]["image"]).get_fdata(dtype=np.float32)[None]
        np.testing.assert_array_equal(array, preprocess_case(image, None, AFFINE, PLAN).image)


def test_a_running_training_keeps_the_label_that_it_began_with(tmp_path):
    case = write_case(tmp_path / "a", "case", 1)
    cache = str(tmp_path / "cache")
    running = preprocessed_cases([case], [], PLAN, cache)["training"][0]
    before = np.load(running["label"])
    label = nibabel.load(case["label"])
    changed = np.asarray(label.dataobj).copy()
    changed[changed > 0] = 0
    nibabel.save(nibabel.Nifti1Image(changed, label.affine), case["label"])
    after = preprocessed_cases([case], [], PLAN, cache)["training"][0]
    assert after["label"] != running["label"] and np.load(after["label"]).max() == 0
    np.testing.assert_array_equal(np.load(running["label"]), before)


def test_files_that_only_differ_in_their_content_are_told_apart(tmp_path, monkeypatch):
    """Uncompressed files of two data sets, of one size and, on a coarse clock, of one time."""
    sets = [[write_case(tmp_path / name, "case", seed)] for name, seed in (("a", 1), ("b", 2))]
    for cases in sets:
        for key in ("image", "label"):
            path = cases[0][key].removesuffix(".gz")
            nibabel.save(nibabel.load(cases[0][key]), path)
            cases[0][key] = path
    stat = os.stat

    def coarse(path, **kwargs):
        state = list(stat(path, **kwargs))
        return os.stat_result([*state[:7], 0, 0, 0])

    monkeypatch.setattr(store.os, "stat", coarse)
    first, second, again = (run(cases, tmp_path / "cache")[0]["image"] for cases in (*sets, sets[0]))
    assert first == again != second


def test_a_header_with_its_voxels_in_another_file_stands_for_both(tmp_path):
    headers = {
        "case.mhd": ("NDims = 3\nElementDataFile = case.raw\n", ["case.raw"]),
        "list.mhd": ("NDims = 3\nElementDataFile = LIST\n1.raw\n2.raw\n", ["1.raw", "2.raw"]),
        "numbered.mhd": ("NDims = 3\nElementDataFile = n%02d.raw 1 2 1\n", ["n01.raw", "n02.raw"]),
        "local.mha": ("NDims = 3\nElementDataFile = LOCAL\n\0\0", []),
        "case.nrrd": ("NRRD0004\ntype: float\ndata file: case.raw\n", ["case.raw"]),
        "attached.nrrd": ("NRRD0004\ntype: float\n\ndata file: none.raw", []),
    }
    for name in ("case.raw", "1.raw", "2.raw", "n01.raw", "n02.raw"):
        (tmp_path / name).write_bytes(name.encode())
    for name, (header, expected) in headers.items():
        (tmp_path / name).write_text(header)
        case = {"id": "case", "image": str(tmp_path / name)}
        assert [Path(file["path"]).name for file in store._content(case)[1]] == [name, *expected]
        before = store._content(case)[0], store._state(case)
        for file in expected[-1:]:
            (tmp_path / file).write_bytes(b"other " + name.encode())
            assert before[0] != store._content(case)[0] and before[1] != store._state(case)


def test_files_that_change_while_they_are_read_are_not_stored(tmp_path, monkeypatch):
    case, plain = write_case(tmp_path / "a", "case", 1), store.preprocess_case
    monkeypatch.setattr(
        store, "preprocess_case", lambda *args: (write_case(tmp_path / "a", "case", 2), plain(*args))[1]
    )
    with pytest.raises(ValueError, match="case: the files of the case were changed while they were read"):
        run([case], tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/case"))


def test_a_store_of_version_1_is_left_alone_and_reported(cases, tmp_path, capfd, caplog):
    caplog.set_level("INFO", "mednext_monai.data.store")
    old = tmp_path / "cache" / settings_folder(PLAN).replace("v2-", "v1-") / "case_0"
    old.mkdir(parents=True)
    files = {"image.npy": b"old", "case.json": b'{"id": "case_0", "files": {}}'}
    for name, content in files.items():
        (old / name).write_bytes(content)
    assert settings_folder(PLAN).startswith("v2-")
    assert np.load(run(cases[:1], tmp_path / "cache")[0]["image"]).shape == (1, 12, 12, 18)
    assert {file.name: file.read_bytes() for file in old.iterdir()} == files
    assert f"{old.parent.name} (0.0 MiB) were written by another version of the package" in caplog.text


def test_the_space_of_other_contents_is_reported(tmp_path, caplog):
    caplog.set_level("INFO", "mednext_monai.data.store")
    for name, seed in (("a", 1), ("b", 2)):
        run([write_case(tmp_path / name, "case", seed)], tmp_path / "cache")
    assert "1 stored cases (0.0 MiB) have an id of this run and another content" in caplog.text


def _preparing_process(rank: int, folder: str) -> None:
    cases = [write_case(Path(folder, f"set_{rank}"), "shared", 0), write_case(Path(folder, f"set_{rank}"), "own", rank)]
    stored = preprocessed_cases(cases, [], PLAN, f"{folder}/cache")["training"]
    Path(folder, f"stored_{rank}.json").write_text(json.dumps(stored))


def test_two_runs_that_prepare_cases_of_one_id_at_once(tmp_path):
    spawn(_preparing_process, str(tmp_path))
    stored = [json.loads((tmp_path / f"stored_{rank}.json").read_text()) for rank in range(2)]
    for rank, (_, own) in enumerate(stored):
        image = nibabel.load(tmp_path / f"set_{rank}" / "own_0000.nii.gz").get_fdata(dtype=np.float32)[None]
        np.testing.assert_array_equal(np.load(own["image"]), preprocess_case(image, None, AFFINE, PLAN).image)
    assert stored[0][1]["image"] != stored[1][1]["image"]
    assert all(os.path.isfile(case[key]) for cases in stored for case in cases for key in ("image", "label", "info"))


def test_a_process_that_stores_the_same_case_later_keeps_the_first(tmp_path):
    """Without a lock, as on some network file systems."""
    case = write_case(tmp_path / "a", "case", 1)
    place = Path(run([case], tmp_path / "cache")[0]["image"]).parent
    inode = os.stat(place / "image.npy").st_ino
    store._store(case, PLAN, place, store._state(case), [])
    assert os.stat(place / "image.npy").st_ino == inode
    assert not list(place.parents[1].glob(".tmp-*"))


def test_a_case_that_another_run_is_storing_is_left_to_it(cases, tmp_path, prepared, monkeypatch, caplog):
    """It is taken up again at the end, and is then found."""
    caplog.set_level("INFO", "mednext_monai.data.store")
    folder = tmp_path / "cache" / settings_folder(PLAN)
    (folder / store.LOCKS).mkdir(parents=True)
    content = store._content(cases[0])[0]
    with open(folder / store.LOCKS / content, "a+") as file:
        assert store._lock(file.fileno()) is True
        plain = store._say

        def release(message, progress):
            if "other runs are preprocessing 1 of the cases" in message:
                assert prepared == ["case_1", "case_2"]
                store._store(cases[0], PLAN, folder / "case_0" / content, store._state(cases[0]), [])
                file.close()
            plain(message, progress)

        monkeypatch.setattr(store, "_say", release)
        stored = run(cases, tmp_path / "cache")
    assert prepared == ["case_1", "case_2", "case_0"]  # the last one by the other run, above
    assert np.load(stored[0]["image"]).shape == (1, 12, 12, 18)
    assert "other runs are preprocessing 1 of the cases: waiting for them." in caplog.text


def test_what_a_run_is_writing_is_left_alone(cases, tmp_path):
    folder = tmp_path / "cache" / settings_folder(PLAN)
    names = {name: folder / name for name in (f"{store._temporary_prefix()}mine", ".tmp-other-1", ".tmp-other-2")}
    for place in names.values():
        place.mkdir(parents=True)
        (place / "image.npy").touch()
    before = time.time() - store.LEFT_BEHIND - 60
    for path in (names[".tmp-other-2"] / "image.npy", names[".tmp-other-2"]):
        os.utime(path, (before, before))
    with store._shared(folder):  # a run
        left = {place.name for place in folder.glob(".tmp-*")}
        assert left == {".tmp-other-1"}
        names[f"{store._temporary_prefix()}mine"].mkdir()
        run(cases, tmp_path / "cache")  # another one
        assert {place.name for place in folder.glob(".tmp-*")} == {f"{store._temporary_prefix()}mine", ".tmp-other-1"}
    run(cases, tmp_path / "cache")  # alone
    assert {place.name for place in folder.glob(".tmp-*")} == {".tmp-other-1"}  # perhaps of another computer


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_error(cases, tmp_path, monkeypatch, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store.fcntl, "flock", refuse)
    assert all(os.path.isfile(case["info"]) for case in run(cases, tmp_path / "cache"))


def test_the_computers_of_a_run_share_the_work_and_begin_at_different_cases(cases, tmp_path, prepared):
    preprocessed_cases(cases, [], PLAN, str(tmp_path / "a"), rank=2, world_size=3)
    assert prepared == ["case_2", "case_0", "case_1"]
    prepared.clear()
    preprocessed_cases(cases, [], PLAN, str(tmp_path / "a"), rank=3, local_rank=1, world_size=4)
    assert prepared == []


def test_moved_data_is_recognized(cases, tmp_path, prepared):
    run(cases, tmp_path / "cache")
    (tmp_path / "moved").mkdir()
    moved = [
        {"id": case["id"], **{key: shutil.copy(case[key], tmp_path / "moved") for key in ("image", "label")}}
        for case in cases
    ]
    prepared.clear()
    run(moved, tmp_path / "cache")
    assert prepared == []


def test_settings_lie_side_by_side(cases, tmp_path, prepared):
    run(cases[:1], tmp_path / "cache")
    other = {**PLAN, "spacing": [2, 2, 2]}
    assert np.load(run(cases[:1], tmp_path / "cache", other)[0]["image"]).shape == (1, 6, 6, 9)
    run(cases[:1], tmp_path / "cache", {**PLAN, "batch_size": 9})  # does not concern preprocessing
    assert prepared == ["case_0", "case_0"]
    assert settings_folder(PLAN) != settings_folder(other)


def test_missing_or_damaged_files_are_made_again(cases, tmp_path, prepared):
    stored = run(cases, tmp_path / "cache")
    os.remove(stored[0]["label"])
    os.truncate(stored[1]["image"], 200)
    with open(stored[2]["info"], "w") as file:
        file.write('{"id": ')
    prepared.clear()
    stored = run(cases, tmp_path / "cache")
    assert prepared == ["case_0", "case_1", "case_2"]
    assert all(np.load(case["image"]).shape == (1, 12, 12, 18) for case in stored)


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "foreground.npz", "case.json", "reference"])
def test_damage_that_keeps_the_size_is_noticed(cases, tmp_path, prepared, name):
    stored = run(cases, tmp_path / "cache")
    place = Path(stored[0]["info"]).parent
    if name == "reference":
        file = next(place.parent.glob("*.ref"))
        file.write_text(f"../case_1/{Path(stored[1]['info']).parent.name}")
    elif name == "case.json":
        (place / name).write_text('{"files": {}}')  # says nothing about labels and geometry
    else:
        content = (place / name).read_bytes()
        (place / name).write_bytes(bytes(len(content)))
    assert store.stored_content(cases[0], PLAN, tmp_path / "cache") is None
    prepared.clear()
    assert run(cases, tmp_path / "cache") == stored
    assert prepared == ([] if name == "reference" else ["case_0"])


def test_all_problems_are_listed_and_the_rest_is_stored(cases, tmp_path):
    cases[0]["label"] = str(tmp_path / "shorter.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 12, 8), np.uint8), AFFINE), cases[0]["label"])
    data = open(cases[2]["image"], "rb").read()
    open(cases[2]["image"], "wb").write(data[: len(data) // 2])
    with pytest.raises(CasesError) as error:
        run([*cases, {"id": "y", "image": "nowhere.nii"}], tmp_path / "cache", num_workers=2)
    message = str(error.value)
    assert set(error.value.failures) == {"case_0", "case_2", "y"}
    assert "3 of 4 cases cannot be preprocessed; the other 1 are stored" in message
    assert "y: nowhere.nii is not a file." in message and str(pickle.loads(pickle.dumps(error.value))) == message
    assert "shorter.nii.gz: has (10, 12, 8) voxels" in message and "case_2_0000.nii.gz: cannot be read" in message
    folder = tmp_path / "cache" / settings_folder(PLAN)
    assert sorted(path.name for path in folder.glob("case_*")) == ["case_1"]
    assert not list(folder.glob(".tmp-*"))


def test_wrong_lists_are_refused_before_anything_is_written(cases, tmp_path):
    wrong = [*cases, cases[0], {"id": "../x", "image": cases[0]["image"]}, {"id": "y", "image": []}]
    with pytest.raises(ValueError) as error:
        run(wrong, tmp_path / "cache")
    assert "'case_0' occurs twice" in str(error.value)
    assert "'../x'" in str(error.value) and "y: has no image" in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_disk_space_is_checked_beforehand(cases, tmp_path, monkeypatch, prepared):
    usage, needed = namedtuple("usage", "total used free"), 3 * (15 * 12 * 18) * 5  # float32 image, int8 label
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(OSError, match="3 cases to preprocess .* Free some space"):
        run(cases, tmp_path / "cache")
    assert prepared == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    run(cases, tmp_path / "cache")
    assert len(prepared) == 3


KILLED = """
import sys
from mednext_monai.data import store

if __name__ == "__main__":
    import json, time
    cases, cache, workers = json.loads(sys.argv[1])
    if workers == 0:  # hold the second case half-way, its arrays written, its marker not
        write = store._write_json
        def hold(path, content):
            if path.name == store.MARKER and content["id"] == "case_1":
                print("half-way", flush=True)
                time.sleep(60)
            write(path, content)
        store._write_json = hold
    store.preprocess_dataset(cases, {"spacing": [1, 1, 1], "normalization": ["masked_zscore"]}, cache, workers)
"""


def test_killed_half_way(cases, tmp_path, prepared):
    """SIGKILL between the arrays and the marker of the second case: the first stays, the others are made, no debris."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    cache = tmp_path / "cache"
    arguments = json.dumps([cases, str(cache), 0])
    process = subprocess.Popen([sys.executable, str(script), arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half-way\n" or "half-way\n" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = cache / settings_folder(PLAN)
    assert sorted(path.name for path in folder.glob("case_*")) == ["case_0"]
    assert len(list(folder.glob(".tmp-*"))) == 1
    stored = run(cases, cache)
    assert prepared == ["case_1", "case_2"]
    assert not list(folder.glob(".tmp-*"))
    assert all(os.path.isfile(case["label"]) for case in stored)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for child processes in /proc")
def test_workers_end_with_their_parent(tmp_path):
    """After SIGKILL of the main process no worker is left behind."""
    cases = [write_case(tmp_path, f"case_{seed}", seed) for seed in range(40)]
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps([cases, str(cache), 2])], stderr=subprocess.DEVNULL
    )
    children = wait_for(lambda: (found := children_of(process.pid)) and len(found) >= 2 and found)
    wait_for(lambda: list(cache.glob("*/case_*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not any(is_running(child) for child in children))


def test_a_case_on_both_sides_of_a_fold_is_preprocessed_once(dataset, tmp_path):
    cases = training_cases(dataset, "all")[:2]
    plan = {"spacing": [2, 2, 2], "normalization": ["zscore"]}
    sides = preprocessed_cases(cases, cases[:1], plan, str(tmp_path / "cache"))
    assert [[case["id"] for case in sides[side]] for side in ("training", "validation")] == [
        ["box_0", "box_1"],
        ["box_0"],
    ]
    assert sides["validation"][0] == sides["training"][0]
    assert all(os.path.isfile(sides["training"][1][key]) for key in ("image", "label", "foreground"))


def test_an_ignore_label_has_stored_cases_of_its_own_with_the_annotated_voxels(tmp_path):
    cases = [write_case(tmp_path, "case_0", 0)]
    label = np.asanyarray(nibabel.load(cases[0]["label"]).dataobj).copy()
    label[:, :, 5:] = 2
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), cases[0]["label"])
    plain, sparse = run(cases, tmp_path / "cache")[0], run(cases, tmp_path / "cache", {**PLAN, "ignore_label": 2})[0]
    assert store.settings_folder({**PLAN, "ignore_label": None}) == store.settings_folder(PLAN)
    np.testing.assert_array_equal(np.load(plain["label"]), np.load(sparse["label"]))
    np.testing.assert_array_equal(np.load(plain["image"]), np.load(sparse["image"]))
    with np.load(plain["foreground"]) as one, np.load(sparse["foreground"]) as other:
        assert one.files == ["1", "2"] and other.files == ["1", "annotated"]
        np.testing.assert_array_equal(one["1"], other["1"])
        values = np.load(sparse["label"])[0][tuple(other["annotated"].T)]
        assert set(values) == {0, 1} and len(values) == np.isin(np.load(sparse["label"]), [0, 1]).sum()


def test_the_content_of_an_image_is_all_of_its_files(tmp_path):
    (tmp_path / "a.mhd").write_text("ObjectType = Image\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"1")
    (tmp_path / "b.nii").write_bytes(b"2")
    files = [str(tmp_path / "a.mhd"), str(tmp_path / "b.nii")]
    contents = [store.image_content(image) for image in (files, files[::-1], files[0], files[1])]
    (tmp_path / "a.raw").write_bytes(b"3")
    contents += [store.image_content(files)]
    assert len(set(contents)) == 5
    (tmp_path / "a.raw").write_bytes(b"1")
    (tmp_path / "a.raw").touch()
    assert store.image_content(files) == contents[0]
    (tmp_path / "a.raw").unlink()
    with pytest.raises(OSError):
        store.image_content(files)
