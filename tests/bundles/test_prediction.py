"""``mednext predict`` on many cases: what is skipped, what is named at the end, what survives a kill."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_trained
from helpers.datasets import make_case, save
from helpers.processes import children_of, free_port, is_running, wait_for
from monai.bundle import run

from mednext_monai import files
from mednext_monai.data import Results
from mednext_monai.engines import CaseDataset
from mednext_monai.errors import diagnosis
from mednext_monai.transforms import SaveImageOnSourceGridd

IDS = [f"case_{number}" for number in range(5)]
OPTIONS = {"patch_size": 16, "mirror": False, "device": "cpu", "out_channels": 2, "num_workers": 0}


@pytest.fixture
def bundle(tmp_path) -> Path:
    torch.manual_seed(0)
    return make_trained("mednext_s_k3", tmp_path, base_channels=2)


@pytest.fixture
def scans(tmp_path) -> Path:
    for number, case in enumerate(IDS):
        write_scan(tmp_path / "scans" / f"{case}.nii.gz", number)
    return tmp_path / "scans"


def write_scan(file: Path, seed: int) -> None:
    save(file, make_case(seed)[0][..., 0])


@pytest.fixture
def predict(bundle, scans, tmp_path, caplog, monkeypatch) -> Callable[..., str]:
    """Run the workflow in this process; return what it logged, or the sentence with which it ended."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a run replaces

    def call(**options: object) -> str:
        caplog.clear()
        config = str(bundle / "configs" / "inference.json")
        arguments = {"bundle_root": str(bundle), "input": str(scans), "output_dir": str(tmp_path / "out")}
        with caplog.at_level(logging.INFO):
            try:
                run("inferring", config_file=config, logging_file=False, **(arguments | OPTIONS | options))
            except Exception as error:
                return diagnosis(error) or repr(error)
        return caplog.text

    return call


def state(folder: Path) -> dict[str, int]:
    """The time at which each file was made."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def remade(folder: Path, before: dict[str, int]) -> list[str]:
    now = state(folder)
    assert now.keys() == before.keys()
    return sorted(name.removesuffix(".nii.gz") for name in now if now[name] != before[name])


def test_finished_cases_are_skipped_until_something_that_matters_changes(predict, bundle, scans, tmp_path, monkeypatch):
    out, model = tmp_path / "out", bundle / "models" / "model.pt"
    assert "are finished" not in predict()
    before = state(out)
    assert sorted(before) == [f"{case}.nii.gz" for case in IDS]
    for scan in scans.iterdir():
        os.utime(scan, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("mednext_monai.handlers.weights_loader.load_weights", None)  # is not needed
        log = predict(num_workers=1, sw_batch_size=4)  # no difference for the result
    assert "5 of 5 cases are finished" in log and "nothing is left to do" in log and "wrote" not in log
    assert remade(out, before) == []

    write_scan(scans / "case_1.nii.gz", 8)
    (out / "case_3.nii.gz").unlink()
    log = predict()
    assert "3 of 5 cases are finished" in log and "2 are left" in log and log.count("wrote") == 2
    assert remade(out, before) == ["case_1", "case_3"]

    for options in (
        {"overlap": 0.25},
        {"overlap": 0.25, "accumulate": "half"},
        {"patch_size": 32},
        {"amp": False},
        {"amp": False, "cpu_amp": True},
    ):
        before = state(out)
        assert "are finished" not in predict(**options) and remade(out, before) == IDS, options
    before = state(out)
    weights = torch.load(model, weights_only=True)
    weights["out_0.conv_out.bias"] += 1
    torch.save(weights, model)
    assert "are finished" not in predict(amp=False) and remade(out, before) == IDS
    before = state(out)
    predict(amp=False, overwrite=True)
    assert remade(out, before) == IDS


def test_results_of_others_are_refused_and_options_and_weights_are_checked_first(predict, bundle, tmp_path):
    predict()
    save(tmp_path / "out" / "case_2.nii.gz", np.ones((2, 2, 2), np.uint8))
    sentence = predict()
    assert "case_2.nii.gz exists and was not written by this package" in sentence
    before = state(tmp_path / "out")
    assert "wrote" in predict(overwrite="true") and remade(tmp_path / "out", before) == IDS
    (bundle / "models" / "model.pt").write_bytes(b"cut")
    assert "model.pt cannot be read" in predict(input="nowhere")


def test_a_run_that_also_writes_postprocessed_results_needs_both(predict, tmp_path):
    (tmp_path / "decision.json").write_text('{"for_which_classes": [[1]]}')
    predict()
    before = state(tmp_path / "out")
    assert "are finished" not in predict(postprocess=str(tmp_path / "decision.json"))
    assert len(state(tmp_path / "out")) == 10
    assert "5 of 5 cases are finished" in predict(postprocess=str(tmp_path / "decision.json"))
    (tmp_path / "out" / "postprocessed" / "case_1.nii.gz").unlink()
    assert "4 of 5 cases are finished" in predict(postprocess=str(tmp_path / "decision.json"))
    (tmp_path / "decision.json").write_text('{"for_which_classes": []}')
    assert "are finished" not in predict(postprocess=str(tmp_path / "decision.json"))
    assert before.keys() < state(tmp_path / "out").keys()


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_cases_are_named_at_the_end_and_the_others_written(
    predict, scans, tmp_path, monkeypatch, workers, when
):
    bad = ("case_0", "case_2", "case_4")

    def damage(*_: object) -> None:
        for case in bad:
            (scans / f"{case}.nii.gz").write_bytes(b"damaged")

    check = CaseDataset.leave_out_invalid
    with monkeypatch.context() as patch:
        if when == "during":  # after the checks
            patch.setattr(CaseDataset, "leave_out_invalid", lambda *args: damage(check(*args)))
        else:
            damage()
        sentence = predict(num_workers=workers)
    assert sentence.startswith("3 of 5 cases could not be segmented:\n")
    assert [line.split(":")[0].strip() for line in sentence.splitlines()[1:]] == list(bad)
    assert all("nii.gz: cannot be read as an image: " in line for line in sentence.splitlines()[1:])
    assert sorted(state(tmp_path / "out")) == ["case_1.nii.gz", "case_3.nii.gz"]
    for number in (0, 2, 4):
        write_scan(scans / f"case_{number}.nii.gz", number)
    assert "2 of 5 cases are finished" in predict() and len(state(tmp_path / "out")) == 5


def test_if_every_case_is_bad_the_network_is_not_used(predict, scans, tmp_path):
    for scan in scans.iterdir():
        scan.write_bytes(b"damaged")
    assert predict().startswith("5 of 5 cases could not be segmented:\n  case_0: ")
    assert not state(tmp_path / "out")


def test_an_image_that_is_replaced_while_it_is_read_is_segmented_again(predict, scans, tmp_path, monkeypatch):
    plain, replaced = Results.digest, []

    def digest(self: Results, case: dict) -> str:
        found = plain(self, case)
        if case["id"] == "case_3" and not replaced:
            write_scan(scans / "case_3.nii.gz", 9)
            replaced.append(found)
        return found

    monkeypatch.setattr(Results, "digest", digest)
    predict()
    before = state(tmp_path / "out")
    assert replaced and "4 of 5 cases are finished" in predict()
    assert remade(tmp_path / "out", before) == ["case_3"]
    assert "5 of 5 cases are finished" in predict()


def test_a_full_disk_ends_the_run_and_the_next_one_completes_it(predict, tmp_path, monkeypatch):
    usage, plain = namedtuple("usage", "total used free"), nibabel.save
    with monkeypatch.context() as patch:

        def fill(image: object, path: Path) -> None:
            if "case_2" in str(path):
                Path(path).write_bytes(b"1234")
                patch.setattr(files.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
                raise RuntimeError("of a library")
            plain(image, path)

        patch.setattr(nibabel, "save", fill)
        sentence = predict()
    assert "the disk is full: 4 bytes are written, more are needed, 0 are free: " in sentence
    assert sorted(os.listdir(tmp_path / "out")) == ["case_0.nii.gz", "case_1.nii.gz"]
    assert "2 of 5 cases are finished" in predict()
    assert "5 of 5 cases are finished" in predict()


def test_without_the_checks_of_a_run_results_have_digests_all_the_same(predict, tmp_path, monkeypatch):
    """The transforms write plain segmentations for tools that pass no digest."""
    predict()
    file = tmp_path / "out" / "case_0.nii.gz"
    image = nibabel.load(file)
    assert image.header["descrip"].item().startswith(b"segmentation by mednext-monai ")
    data = torch.from_numpy(np.asarray(image.dataobj))[None]
    SaveImageOnSourceGridd("pred", tmp_path / "other")({"pred": _meta(data, image.affine)})
    assert nibabel.load(tmp_path / "other" / "pred.nii.gz").header["descrip"].item() == b"segmentation by mednext-monai"


def _meta(data: torch.Tensor, affine: np.ndarray):
    from monai.data import MetaTensor

    return MetaTensor(data, affine=torch.from_numpy(affine))


def start(bundle: Path, scans: Path, out: Path, *more: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [*before, sys.executable, "-m", "mednext_monai", "predict", str(bundle), str(scans), str(out)]
    for name, value in OPTIONS.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *more], env=environment, text=True, start_new_session=True, **pipes)


@pytest.fixture
def many(scans) -> list[str]:
    """Enough cases that a run can be met in its middle."""
    for number in range(5, 60):
        write_scan(scans / f"case_{number}.nii.gz", number)
    return sorted(scan.name for scan in scans.iterdir())


def the_python(launcher: subprocess.Popen) -> int:
    """The process that segments, started by the command."""
    return wait_for(lambda: children_of(launcher.pid))[0]


def start_and_write_some(bundle: Path, scans: Path, out: Path, *options: str) -> subprocess.Popen:
    """Start a prediction and wait until it has written a few cases."""
    launcher = start(bundle, scans, out, *options)
    wait_for(lambda: len(list(out.glob("*.nii.gz"))) > 3 or launcher.poll() is not None, seconds=100)
    return launcher


def complete(bundle: Path, scans: Path, out: Path, many: list[str]) -> None:
    """What is there is whole; the same command completes it and skips what is there."""
    visible = sorted(file.name for file in out.glob("*.nii.gz") if file.name[0] != ".")
    assert 0 < len(visible) < len(many)
    assert all(np.asarray(nibabel.load(out / name).dataobj).shape == (20, 18, 12) for name in visible)
    before = state(out)
    result = start(bundle, scans, out, "--mirror", "false")
    log, errors = result.communicate(timeout=200)
    assert result.returncode == 0, errors
    assert f"{len(visible)} of {len(many)} cases are finished" in log and "Traceback" not in errors
    after = state(out)
    assert all(after[name] == before[name] for name in visible)
    assert sorted(file.name for file in out.glob("*.nii.gz") if file.name[0] != ".") == many


@pytest.mark.slow
def test_a_run_that_is_killed_is_completed_by_the_same_command(bundle, scans, many, tmp_path):
    out = tmp_path / "out"
    launcher = start(bundle, scans, out)
    wait_for(lambda: len(list(out.glob("*.nii.gz"))) > 3 or launcher.poll() is not None, seconds=100)
    os.kill(the_python(launcher), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "was killed by signal 9; often for lack of memory." in errors.splitlines()[-1]
    complete(bundle, scans, out, many)


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_the_run_and_keeps_what_is_finished(bundle, scans, many, tmp_path):
    out, shell = tmp_path / "out", "mount -t tmpfs -o size=24k none $1 && shift && "
    out.mkdir()
    if subprocess.run(["unshare", "-m", "sh", "-c", f"{shell} true", "sh", out], capture_output=True).returncode:
        pytest.skip("this user may not mount folders")
    shell += f'"$@"; status=$?; cp {out}/* {tmp_path}; ls -A {out}; exit $status'
    launcher = start(bundle, scans, out, before=("unshare", "-m", "sh", "-c", shell, "sh", str(out)))
    listed, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 1
    assert "the disk is full: " in errors.splitlines()[-1] and ".nii.gz'" in errors.splitlines()[-1]
    names = [line for line in listed.splitlines() if line.endswith(".gz") and " " not in line]
    assert 0 < len(names) < 10 and not any(name[0] == "." for name in names)
    for name in names:
        (tmp_path / name).rename(out / name)
    complete(bundle, scans, out, many)


@pytest.mark.slow
def test_control_c_ends_the_run_when_the_case_that_is_made_is_written(bundle, scans, many, tmp_path):
    out = tmp_path / "out"
    launcher = start_and_write_some(bundle, scans, out, "--num_workers", "1")
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 130 and errors.splitlines()[-1] == "mednext: interrupted"
    assert not list(out.glob(".*"))  # no temporary file
    complete(bundle, scans, out, many)


@pytest.mark.slow
def test_the_loss_of_a_process_that_reads_is_explained(bundle, scans, many, tmp_path):
    out = tmp_path / "out"
    launcher = start_and_write_some(bundle, scans, out, "--num_workers", "2")
    workers = children_of(the_python(launcher))
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    sentence = errors.split("mednext: error: ")[-1]
    assert launcher.returncode == 1
    assert sentence.startswith("a process that reads images was killed, probably because memory ran out")
    assert "num_workers is 2" in sentence and "--num_workers 0" in sentence
    wait_for(lambda: not any(map(is_running, workers)))
    complete(bundle, scans, out, many)


@pytest.mark.slow
def test_several_processes_share_the_cases_and_list_all_that_failed(bundle, scans, tmp_path):
    out = tmp_path / "out"
    (scans / "case_1.nii.gz").write_bytes(b"damaged")
    for number, more, status, log in (
        (2, (), 1, ""),
        (2, (), 1, "3 of 3 cases are finished"),
        (7, ("--overwrite", "true"), 0, ""),  # more than cases
        (2, (), 0, "3 of 3 cases are finished"),
    ):
        if status == 0:
            write_scan(scans / "case_1.nii.gz", 1)
        launcher = start(bundle, scans, out, "--gpus", str(number), *more)
        output, errors = launcher.communicate(timeout=250)
        assert launcher.returncode == status, errors[-3000:]
        assert log in output
        if status:
            sentence = errors.split("mednext: error: ")[-1]
            assert sentence.startswith("1 of 5 cases could not be segmented:\n  case_1: ")
        assert sorted(state(out)) == [f"{case}.nii.gz" for case in IDS if status == 0 or case != "case_1"]


@pytest.mark.slow
def test_computers_of_one_torchrun_share_the_cases(bundle, scans, tmp_path):
    """Two launchers, each of which knows only its own process and the address of the first one."""
    out, port = tmp_path / "out", free_port()
    files = [str(bundle / "configs" / f"{name}.json") for name in ("inference", "multi_gpu_inference")]
    options = {"bundle_root": bundle, "input": scans, "output_dir": out, **OPTIONS}

    def run_both() -> list[tuple[int, str]]:
        launchers = []
        for rank in range(2):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)]
            command += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
            command += ["-m", "monai.bundle", "run", "inferring", "--config_file", str(files)]
            command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            launchers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        ended = [launcher.communicate(timeout=200)[1] for launcher in launchers]
        return [(launcher.returncode, errors) for launcher, errors in zip(launchers, ended)]

    (scans / "case_3.nii.gz").write_bytes(b"damaged")
    (first, errors), (second, _) = run_both()
    assert first == second == 1
    assert "mednext: error: 1 of 5 cases could not be segmented:\n" in errors.replace("[rank0]: ", "")
    write_scan(scans / "case_3.nii.gz", 3)
    assert [status for status, _ in run_both()] == [0, 0]
    assert sorted(state(out)) == [f"{case}.nii.gz" for case in IDS]
