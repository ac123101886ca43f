"""The command ``mednext tune``: each case in a process of its own, whose failure costs nothing but a line."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..files import json_object
from .cases import Case, bundle_cases

__all__ = ["FASTER", "MEMORY", "Verdict", "check_device", "judge", "tune"]

FASTER = 0.97  # of the plain modules' time: a smaller gain may be noise
ROUNDS_WON = 0.8  # part of the rounds
MEMORY = 1.02  # of the plain modules' peak: a training that fits must not stop to fit
NO_GPU = (
    "mednext tune measures Triton kernels on a GPU, and PyTorch finds none here; on a CPU there is nothing to choose."
)


class Verdict(NamedTuple):
    """What becomes of a case."""

    is_chosen: bool
    text: str


def tune(
    bundle: str | PathLike[str],
    options: Mapping[str, Any],
    device: str = "cuda",
    compile: bool = True,
    timeout: float = 1800,
) -> Path | None:
    """
    Measure the Triton kernels for the network of a bundle, print a line for each case, and write what may be used.

    Args:
        bundle: the bundle's folder.
        options: of its ``train.json``, by name.
        device: the GPU. Defaults to ``"cuda"``.
        compile: whether compiled code is measured, too. Defaults to ``True``.
        timeout: seconds after which a case is given up. Defaults to 1800.

    Returns:
        the file that was written, or ``None`` if no case got so far that something is known about it.

    Raises:
        ValueError: if there is no GPU, or an option is not allowed.
    """
    from ..networks.backends.triton import table

    check_device(device)
    results, entries = [], []
    for case in bundle_cases(bundle, options, compile):
        print(f"{case}: ", end="", flush=True)
        results.append(_measured(case, device, timeout))
        verdict = judge(results[-1])
        print(verdict.text, flush=True)
        if verdict.is_chosen:
            entries.append({name: value for name, value in results[-1].items() if name != "environment"})
    known = [result for result in results if "key" in result]
    return table.update([result["key"] for result in known], entries, known[0]["environment"]) if known else None


def check_device(device: str) -> None:
    """
    Check that there is something to measure.

    Raises:
        ValueError: if there is no such GPU, or Triton is not installed.
    """
    from importlib.util import find_spec

    import torch

    from ..networks.backends.triton.table import is_interpreting

    if is_interpreting() and device == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError(NO_GPU)
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdigit() or int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be a GPU of this computer, 'cuda' or 'cuda:1', got {device!r}.")
    if find_spec("triton") is None:
        raise ValueError("mednext tune needs the package triton, which is not installed.")


def _measured(case: Case, device: str, timeout: float) -> dict[str, Any]:
    """Return the result of a case, in which ``problem`` says so if the process failed, in whatever way."""
    with tempfile.TemporaryDirectory(prefix="mednext-tune-") as folder:
        source, target, log = (Path(folder, name) for name in ("case.json", "result.json", "log.txt"))
        source.write_text(json.dumps(case._asdict()))
        command = [sys.executable, "-m", f"{__package__}.measure", str(source), str(target), device]
        with open(log, "wb") as output:
            # a group of its own, since torch.compile starts processes that must end with it
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=os.name == "posix"
            )
            status, problem = 0, ""
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                problem = f"no result within {timeout:g} s"
            finally:
                _end(process)
        result = json_object(target)  # what is known, whatever has happened then
        if problem or status:
            result["problem"] = problem or _reason(status, log.read_text(errors="replace"))
        return result


def _end(process: subprocess.Popen) -> None:
    """End a process and what it has started."""
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nothing is left of it
            pass
    else:
        process.kill()
    process.wait()


def _reason(status: int, log: str) -> str:
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"the process failed: {lines[-1][:300] if lines else f'exit status {status}'}"


def judge(result: Mapping[str, Any]) -> Verdict:
    """
    Decide whether the kernels are used in a case.

    They must be exact, at least 3% faster in the median of the rounds and faster in four of five rounds, and need no
    more memory (2%).

    Args:
        result: what ``measure`` returned.
    """
    problem = result.get("problem", "" if "seconds" in result else "no result")
    if problem:
        return Verdict(False, f"not used: {problem}")
    plain, triton = (result["seconds"][name] for name in ("plain", "triton"))
    before, after = statistics.median(plain), statistics.median(triton)
    won = sum(own < other for own, other in zip(triton, plain))
    times = f"exact; plain {before:.4g} s, Triton {after:.4g} s"
    memory = result.get("memory")
    if memory is not None:
        times += f"; {memory['plain'] / 2**30:.1f} and {memory['triton'] / 2**30:.1f} GiB"
    if after > FASTER * before or won < math.ceil(ROUNDS_WON * len(plain)):
        return Verdict(False, f"not used: not faster: {times}")
    if memory is not None and memory["triton"] > MEMORY * memory["plain"]:
        return Verdict(False, f"not used: more memory: {times}")
    return Verdict(True, f"used: {times}")
