"""A training by the processes of several computers: two launchers with a process each, one data set and bundle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.bundles import TINY
from helpers.processes import free_port, wait_for

from mednext_monai.planning import plan
from mednext_monai.weights import read_state_dict

SHORT = ("--epochs", "2", "--iterations_per_epoch", "3", "--val_interval", "1", "--batch_dice", "false")


def ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(params=["one network", "two networks"])
def computers(request) -> Iterator[tuple[list[list[str]], str]]:
    """What stands before a command on each of two computers, and the address of the first one."""
    if request.param == "one network":
        yield [[], []], "127.0.0.1"
        return
    names = [f"mednext{os.getpid()}{end}" for end in "ab"]
    try:
        if not all(ip("netns", "add", name) for name in names):
            pytest.skip("this user may not make network namespaces")
        pair = ("link", "add", "eth7", "netns", names[0], "type", "veth", "peer", "name", "eth8", "netns", names[1])
        if not ip(*pair):
            pytest.skip("this system has no virtual network devices")
        for name, device, address in zip(names, ("eth7", "eth8"), ("10.77.0.1/24", "10.77.0.2/24")):
            for up in ("lo", device):
                ip("-n", name, "link", "set", up, "up")
            ip("-n", name, "addr", "add", address, "dev", device)
        yield [["ip", "netns", "exec", name] for name in names], "10.77.0.1"
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.fixture
def start(run_bundle, dataset, tmp_path, computers):
    """Start one launcher per computer; the processes are killed at the end."""
    plan(dataset, tmp_path / "task.json", processes=0, progress=False, report=False)
    before, address = computers
    port, running = free_port(), []
    files = [run_bundle.bundle / "configs" / f"{name}.json" for name in ("train", "multi_gpu_train")]
    config = "[" + ",".join(f"'{file}'" for file in (*files, tmp_path / "task.json")) + "]"

    def begin(rank: int, *options: str) -> subprocess.Popen:
        command = [
            *before[rank],
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--node_rank",
            str(rank),
        ]
        command += ["--nproc_per_node", "1", "--master_addr", address, "--master_port", str(port)]
        command += ["-m", "monai.bundle", "run", "training", "--config_file", config]
        command += ["--bundle_root", str(run_bundle.bundle), *TINY, *SHORT, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(tmp_path / f"log_{rank}.txt", "w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path))
        return running[-1]

    yield begin
    for process in running:
        process.terminate()
        process.wait(60)


def read_logs(tmp_path: Path) -> list[str]:
    return [(tmp_path / f"log_{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.slow
def test_two_computers_train_as_one_process_does(start, run_bundle, tmp_path):
    launchers = [start(rank) for rank in range(2)]
    assert [launcher.wait(240) for launcher in launchers] == [0, 0], "\n".join(read_logs(tmp_path))
    models, cache = run_bundle.bundle / "models", run_bundle.bundle / "cache"
    aside = {"pretrained.pt", "pretrained.json"}  # released weights, by the first process only
    written = {"model.pt", "model_best.pt", "last.pt", "last.previous.pt"}
    assert {file.name for file in models.iterdir()} == written | aside
    assert len(list(cache.glob("v2-*/*/*/case.json"))) == 6 and not list(cache.glob("v2-*/.tmp-*"))
    assert len(list((run_bundle.bundle / "eval").glob("events.out.tfevents.*"))) > 0
    logs = read_logs(tmp_path)
    assert "wrote the weights after the last epoch" in logs[0] and "mean_train_loss" in logs[0]
    assert "wrote the weights" not in logs[1] and "mean_train_loss" not in logs[1]
    run_bundle(
        "training", "train", options=(*SHORT, "--ckpt_dir", str(tmp_path / "one")), overlay=tmp_path / "task.json"
    )
    several, one = (read_state_dict(folder / "model.pt") for folder in (models, tmp_path / "one"))
    assert several.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_invalid_case_ends_the_processes_of_both_computers(start, dataset, tmp_path):
    (dataset / "imagesTr" / "box_2.nii.gz").write_bytes(b"")
    launchers = [start(rank) for rank in range(2)]
    assert all(launcher.wait(180) != 0 for launcher in launchers)
    logs = read_logs(tmp_path)
    assert re.search(r"mednext: error: 1 problem\(s\) in 6 cases:\n.*box_2.nii.gz: cannot be read", logs[0])
    assert "mednext: error: another process of this run has ended; its messages say why." in logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_the_loss_of_a_computer_ends_the_other_and_the_training_can_be_resumed(start, run_bundle, tmp_path, lost):
    launchers = [start(rank, "--epochs", "200") for rank in range(2)]
    wait_for((run_bundle.bundle / "models" / "last.pt").is_file, seconds=120)
    launchers[lost].terminate()
    started = time.monotonic()
    assert launchers[1 - lost].wait(180) != 0
    assert time.monotonic() - started < 170
    again = [start(rank, "--epochs", "200", "--resume", "true") for rank in range(2)]
    wait_for(lambda: "resumed from" in read_logs(tmp_path)[0] or again[0].poll() is not None, seconds=120)
    assert again[0].poll() is None and again[1].poll() is None, "\n".join(read_logs(tmp_path))
