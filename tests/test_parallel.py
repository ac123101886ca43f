"""Work on many cases: one that fails, or kills its process, does not stop the others."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import children_of, is_running, wait_for

from mednext_monai import parallel
from mednext_monai.parallel import KILLED, map_cases


def double(value, parent: int = 0):
    if value == "bad":
        raise ValueError("a bad case")
    if value == "full":
        raise MemoryError
    if value == "kill" and parent != os.getpid():
        os.kill(os.getpid(), signal.SIGKILL)
    return value * 2


@pytest.mark.parametrize("processes", [1, 2, None])
def test_a_case_that_fails_does_not_stop_the_others(processes):
    results, problems = map_cases(double, {"a": 1, "b": "bad", "c": 3, "d": "full"}, processes)
    assert results == {"a": 2, "c": 6} and list(results) == ["a", "c"]
    assert problems == {"b": "a bad case", "d": "not enough memory for this case."}


@pytest.mark.parametrize("processes", [2, 4])
def test_cases_that_kill_their_process_do_not_stop_the_others(processes):
    cases = {f"case_{i}": "kill" if i in (1, 6) else i for i in range(8)}
    results, problems = map_cases(functools.partial(double, parent=os.getpid()), cases, processes)
    assert results == {case: 2 * value for case, value in cases.items() if value != "kill"}
    assert problems == {"case_1": KILLED, "case_6": KILLED} and "memory ran out" in KILLED


def test_spawned_processes_do_the_same():
    cases = {"0": 0.5, "1": 2}
    assert map_cases(json.dumps, cases, 2, spawn=True) == ({"0": "0.5", "1": "2"}, {})


def test_another_error_ends_the_work():
    with pytest.raises(TypeError):
        map_cases(len, {str(i): i for i in range(9)}, 2)


def test_the_number_of_processes_is_checked():
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        map_cases(double, {"a": 1}, 0)
    assert map_cases(double, {}) == ({}, {})


def test_without_a_bar_the_log_says_how_far_it_is(caplog, monkeypatch, capfd):
    monkeypatch.setattr(parallel, "LOG_INTERVAL", 0.0)
    caplog.set_level("INFO", "mednext_monai.parallel")
    map_cases(double, {"a": 1, "b": 2}, 1, "doubling", progress=False)
    assert [record.message for record in caplog.records] == ["doubling: 1 of 2 cases, about 0:00:00 left"]
    assert capfd.readouterr().err == ""
    caplog.clear()
    map_cases(double, {"a": 1, "b": 2}, 1, "doubling", progress=True)
    assert not caplog.records and "doubling" in capfd.readouterr().err


SLEEPING = """
import sys, time
from mednext_monai.parallel import map_cases

if __name__ == "__main__":
    map_cases(time.sleep, {"a": 60, "b": 60, "c": 60}, 2, spawn=sys.argv[1] == "spawn")
"""


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for child processes in /proc")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_end_with_the_one_that_started_them(tmp_path, method):
    script = Path(tmp_path, "sleeping.py")
    script.write_text(SLEEPING)
    process = subprocess.Popen([sys.executable, str(script), method])
    try:
        children = wait_for(lambda: (found := children_of(process.pid)) and len(found) >= 2 and found)
        time.sleep(1)  # for the workers to start watching
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_for(lambda: not any(is_running(child) for child in children))
