"""Promises of the busy processes: as many as asked for, busy, and gone afterwards whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.benchmark import run

from mednext_monai.benchmark.load import busy_processes

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # in user and in kernel mode


@needs_proc
def test_each_process_works_until_the_block_ends():
    with pytest.raises(KeyError), busy_processes(2) as processes:
        deadline = time.monotonic() + 30
        while min(cpu_ticks(process.pid) for process in processes) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert min(cpu_ticks(process.pid) for process in processes) >= 5
        assert all(process.poll() is None for process in processes)
        raise KeyError
    assert all(process.poll() is not None for process in processes)


@needs_proc
def test_they_end_when_the_benchmark_is_killed():
    code = "from mednext_monai.benchmark.load import busy_processes\nimport os\n"
    code += "with busy_processes(1) as (process,):\n    print(process.pid, flush=True)\n    os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    pid, deadline = int(killed.stdout), time.monotonic() + 30
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_run_beside_busy_processes_says_so(tmp_path, capsys):
    (found,) = run(tmp_path, "--sections", "forward", "--contestants", "ours", "--load", "1")
    assert found["values"]["ours"]
    assert json.loads((tmp_path / "benchmark.json").read_text())["machine"]["load"] == 1
    assert "1 busy process beside it" in capsys.readouterr().out
