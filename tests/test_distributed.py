"""Processes of one run find each other and wait for each other."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.processes import free_port, spawn

from mednext_monai import distributed
from mednext_monai.distributed import gather, interface_towards, start_processes, stop_processes, wait_for_all


def _waiting_process(rank: int, folder: str) -> None:
    Path(folder, f"ready_{rank}").touch()
    while len(list(Path(folder).glob("ready_*"))) < 2:  # the timeout is for both to have started
        time.sleep(0.01)
    timeout = timedelta(seconds=4)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timeout)
    if rank == 0:
        time.sleep(6)
        Path(folder, "done").touch()
    wait_for_all()
    assert Path(folder, "done").exists()
    dist.destroy_process_group()


def test_processes_wait_for_each_other_beyond_the_groups_timeout(tmp_path):
    wait_for_all()  # alone
    spawn(_waiting_process, str(tmp_path))


def _gathering_process(rank: int, folder: str, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    atexit.register(lambda: dist.is_initialized() or Path(folder, "disconnected").touch())  # after ours
    start_processes(torch.device("cpu"))
    assert gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    if rank == 1:
        os._exit(0)  # without a goodbye
    with pytest.raises(RuntimeError, match="another process of this run has ended"):
        gather(1)
    Path(folder, "noticed").touch()


def test_values_of_all_processes_are_gathered(tmp_path):
    assert gather("alone") == ["alone"]
    spawn(_gathering_process, str(tmp_path), free_port())
    assert (tmp_path / "noticed").exists()
    assert (tmp_path / "disconnected").exists()  # a thread of gloo must not outlive the interpreter


def _ending_process(rank: int, folder: str, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    start_processes(torch.device("cpu"))
    wait_for_all()
    if rank == 1:
        os._exit(0)  # without a goodbye
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="another process of this run has ended"):
        wait_for_all()
    assert time.monotonic() - started < 60
    Path(folder, "noticed").touch()


def test_a_process_that_ends_is_not_waited_for(tmp_path):
    spawn(_ending_process, str(tmp_path), free_port())
    assert (tmp_path / "noticed").exists()


def test_processes_that_cannot_reach_each_other_are_told_what_may_help(monkeypatch):
    monkeypatch.setattr(distributed, "CONNECTING", timedelta(seconds=1))
    environment = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RuntimeError, match="the 2 processes .* cannot reach each other through 127.0.0.1:.*IFNAME"):
        start_processes(torch.device("cpu"))
    stop_processes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_the_interface_on_the_way_to_a_computer():
    addresses = distributed._addresses()
    assert addresses.get("lo", "127.0.0.1") == "127.0.0.1"
    others = {name: address for name, address in addresses.items() if not address.startswith("127.")}
    assert interface_towards("127.0.0.1") == (next(iter(others)) if len(others) == 1 else None)
    for name, address in others.items():
        assert interface_towards(address) == name
    assert interface_towards("no.such.computer.invalid") is None


INTERFACE = """
import socket
from mednext_monai.distributed import interface_towards
print(interface_towards("10.77.0.2"), interface_towards("10.77.0.1"), interface_towards("127.0.1.1"))
"""


def test_the_interface_in_a_network_of_its_own():
    """In a network namespace with one interface, where the name of the computer means itself only."""
    set_up = "ip link add one type veth peer name two && ip addr add 10.77.0.1/24 dev one && ip link set lo up"
    set_up += " && ip link set one up && ip link set two up"
    try:
        possible = subprocess.run(["unshare", "-n", "sh", "-c", set_up], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("this user may not make network namespaces")
    command = ["unshare", "-n", "sh", "-c", f'{set_up} && exec "$@"', "sh", sys.executable, "-c", INTERFACE]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ["one", "one", "one"]
