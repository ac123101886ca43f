"""Many cases: written while the network works, in order; a bad one is named at the end; what meets all ends the run."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import free_port, spawn
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, Lambdad, MapTransform

from mednext_monai.distributed import start_processes, stop_processes
from mednext_monai.engines import CaseDataset, CaseEvaluator, CasesFailed
from mednext_monai.engines.failures import MAX_SHOWN

IDS = [f"case_{number}" for number in range(5)]


class Read(MapTransform):
    """Makes the image of a case from its number; fails as the numbers in ``bad`` say."""

    def __init__(self, bad: dict | None = None) -> None:
        super().__init__("image")
        self.bad = bad or {}

    def __call__(self, data):
        number = data["image"]
        if number in self.bad:
            self.bad[number]()
        return {**data, "image": MetaTensor(torch.full((1, 4, 4, 4), float(number)))}


def fail(error: BaseException):
    def raise_it() -> None:
        raise error

    return raise_it


class Network(torch.nn.Module):
    """Adds 1; for the numbers in ``bad`` an error is raised."""

    def __init__(self, bad: dict | None = None) -> None:
        super().__init__()
        self.bad, self.seen = bad or {}, []

    def forward(self, x):
        number = int(x.flatten()[0])
        self.seen.append(number)
        if number in self.bad:
            self.bad[number]()
        return x + 1


class Write:
    """Writes the number that the network made to ``<folder>/<id>``."""

    def __init__(self, folder: Path, bad: dict | None = None) -> None:
        self.folder, self.bad, self.threads = folder, bad or {}, set()

    def __call__(self, data):
        self.threads.add(threading.get_ident())
        number = int(data["image"].flatten()[0])
        if number in self.bad:
            self.bad[number]()
        (self.folder / data["id"]).write_text(str(int(data["pred"].flatten()[0])))
        data["pred"].meta["saved_to"] = str(self.folder / data["id"])
        return data


def evaluator(folder: Path, read=None, network=None, write=None, workers=0, ids=IDS, **kwargs) -> CaseEvaluator:
    data = [{"id": name, "image": int(name.split("_")[1])} for name in ids]
    dataset = CaseDataset(data, Compose([Read(read)]))
    loader = DataLoader(dataset, batch_size=1, num_workers=workers)
    write = write if isinstance(write, Write) else Write(folder, write)
    return CaseEvaluator(
        torch.device("cpu"), loader, network=Network(network), postprocessing=Compose([write]), **kwargs
    )


def written(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


ALL = {name: str(number + 1) for number, name in enumerate(IDS)}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_case_is_written_in_a_thread_beside_the_network_and_logged(tmp_path, caplog, workers):
    write = Write(tmp_path)
    with caplog.at_level(logging.INFO):
        run = evaluator(tmp_path, write=write, workers=workers)
        run.run()
    assert written(tmp_path) == ALL and run.network.seen == list(range(5))
    assert len(write.threads) == 1 and threading.get_ident() not in write.threads
    lines = [record.message for record in caplog.records if record.name.endswith("case_evaluator")]
    assert [line.split(":")[0] for line in lines] == IDS
    assert all(line.endswith(f" s, wrote {tmp_path / name}") for line, name in zip(lines, IDS))


def test_at_most_one_case_waits_for_a_slow_disk(tmp_path):
    go = threading.Event()
    run = evaluator(tmp_path, write=dict.fromkeys(range(5), lambda: go.wait(20)))
    threading.Timer(0.5, lambda: (ahead.extend(run.network.seen), go.set())).start()
    ahead: list[int] = []
    run.run()
    assert ahead == [0, 1, 2]  # written, waiting, and one that the network has made
    assert written(tmp_path) == ALL


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("where", ["read", "network", "write"])
def test_bad_cases_first_middle_and_last_do_not_stop_the_others(tmp_path, where, workers):
    bad = {0: fail(ValueError("no image")), 2: fail(MemoryError()), 4: fail(KeyError("x"))}
    run = evaluator(tmp_path, **{where: bad}, workers=workers)
    with pytest.raises(CasesFailed) as caught:
        run.run()
    assert written(tmp_path) == {"case_1": "2", "case_3": "4"}
    assert str(caught.value) == (
        "3 of 5 cases could not be segmented:\n"
        "  case_0: ValueError: no image\n  case_2: not enough memory for this case.\n  case_4: KeyError: 'x'"
    )


def test_if_all_fail_it_says_so_and_a_long_list_is_shortened(tmp_path):
    ids = [f"case_{number}" for number in range(100, 100 + MAX_SHOWN + 3)]
    run = evaluator(tmp_path, read={int(name[5:]): fail(ValueError("cut")) for name in ids}, ids=ids)
    with pytest.raises(CasesFailed, match=r"^23 of 23 cases could not be segmented:") as caught:
        run.run()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + MAX_SHOWN + 1 and lines[-1] == "  ... and 3 more"
    assert lines[1] == "  case_100: ValueError: cut" and not written(tmp_path)


def test_cases_that_the_checks_left_out_are_named_too(tmp_path):
    run = evaluator(tmp_path, network={1: fail(ValueError("odd"))})
    dataset = run.data_loader.dataset
    dataset.failures["case_0"] = "cannot be read"
    dataset.data = dataset.data[1:]
    with pytest.raises(CasesFailed, match=r"2 of 5 cases .*\n  case_0: cannot be read\n  case_1: ValueError: odd"):
        run.run()
    assert run.network.seen == [1, 2, 3, 4]


def test_without_cases_nothing_happens(tmp_path):
    run = evaluator(tmp_path)
    run.data_loader.dataset.data = []
    run.run()
    assert not run.network.seen and not written(tmp_path)


def test_a_full_disk_ends_the_run_at_once_and_finished_cases_stay(tmp_path):
    full = fail(OSError(errno.ENOSPC, "the disk is full", "case_1"))
    run = evaluator(tmp_path, write={1: full})
    with pytest.raises(Exception, match="the disk is full|applying transform") as caught:
        run.run()
    assert not isinstance(caught.value, CasesFailed)
    assert written(tmp_path) == {"case_0": "1"} and len(run.network.seen) < 5


def test_a_full_disk_ends_a_long_case_before_the_network_has_finished_it(tmp_path):
    def windows(inputs, network):
        for _ in range(100):
            result = network(inputs)
            time.sleep(0.05 if float(inputs.max()) == 1 else 0)
        return result

    run = evaluator(tmp_path, write={0: fail(OSError(errno.ENOSPC, "full"))}, inferer=windows)
    with pytest.raises(Exception, match="applying transform"):
        run.run()
    assert run.network.seen.count(1) < 100


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_process_that_reads_and_is_killed_has_a_sentence_of_its_own(tmp_path, number):
    """By the lack of memory, which ends a process with SIGKILL."""
    run = evaluator(tmp_path, read={number: lambda: os.kill(os.getpid(), signal.SIGKILL)}, workers=1)
    with pytest.raises(RuntimeError, match=r"killed, probably because memory ran out \(.*\)\. num_workers is 1, and"):
        run.run()
    assert list(written(tmp_path)) == IDS[: len(written(tmp_path))] and len(written(tmp_path)) <= number


def test_an_interruption_ends_the_run_when_what_is_made_is_written(tmp_path):
    slow = {1: lambda: time.sleep(0.3)}
    run = evaluator(tmp_path, network={2: fail(KeyboardInterrupt())}, write=slow)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert written(tmp_path) == {"case_0": "1", "case_1": "2"}
    assert threading.active_count() == 1 or not any("_run" in thread.name for thread in threading.enumerate())


def test_a_gpu_that_has_failed_ends_the_run(tmp_path):
    run = evaluator(tmp_path, network={1: fail(torch.AcceleratorError("CUDA error: an illegal access"))})
    with pytest.raises(torch.AcceleratorError):
        run.run()
    assert run.network.seen == [0, 1] and written(tmp_path) == {"case_0": "1"}


def test_the_bar_shows_the_case_and_the_time_left(tmp_path, capsys):
    evaluator(tmp_path, progress=True).run()
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert "case_4: 100%" in shown and "5/5 [" in shown and "<00:00" in shown


def test_batches_of_several_cases_are_refused(tmp_path):
    loader = DataLoader(CaseDataset([{"id": "a", "image": 1}], Lambdad("image", float)), batch_size=2)
    with pytest.raises(ValueError, match="batch_size of the data loader must be 1, got 2."):
        CaseEvaluator(torch.device("cpu"), loader, network=Network())


def _sharing_process(rank: int, folder: str, port: int, processes: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    start_processes(torch.device("cpu"))
    bad = {1: fail(ValueError("odd")), 2: fail(ValueError("even"))}
    run = evaluator(Path(folder, "out"), read=bad, ids=IDS[:3][rank::processes])
    error = CasesFailed if rank == 0 else SystemExit
    with pytest.raises(error) as caught:
        run.run()
    if rank == 0:
        Path(folder, "message").write_text(str(caught.value))
        time.sleep(1)
        assert not list(Path(folder).glob("ended_*"))  # the others wait until this one has reported
    else:
        assert caught.value.code == 1
        Path(folder, f"ended_{rank}").touch()
    stop_processes()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_of_several_processes_the_first_reports_the_failures_of_all(tmp_path, processes):
    (tmp_path / "out").mkdir()
    spawn(_sharing_process, str(tmp_path), free_port(), processes, processes=processes)
    assert written(tmp_path / "out") == {"case_0": "1"}
    assert (tmp_path / "message").read_text() == (
        "2 of 3 cases could not be segmented:\n  case_1: ValueError: odd\n  case_2: ValueError: even"
    )
    assert len(list(tmp_path.glob("ended_*"))) == processes - 1
