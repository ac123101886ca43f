"""Processes of a distributed run wait for the one that preprocesses, however long it takes."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mednext_monai.data.preprocessed import _wait_for_all


def _waiting_process(rank: int, folder: str) -> None:
    Path(folder, f"ready_{rank}").touch()
    while len(list(Path(folder).glob("ready_*"))) < 2:  # the timeout is for both to have started
        time.sleep(0.01)
    timeout = timedelta(seconds=4)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timeout)
    if rank == 0:
        time.sleep(6)
        Path(folder, "done").touch()
    _wait_for_all()
    assert Path(folder, "done").exists()
    dist.destroy_process_group()


def test_processes_wait_for_each_other_beyond_the_groups_timeout(tmp_path):
    _wait_for_all()  # alone
    torch.multiprocessing.spawn(_waiting_process, (str(tmp_path),), nprocs=2)
