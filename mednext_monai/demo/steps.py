"""A step of the demo: a command in a process of its own, printed before it starts, with its output in a log file."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..bundles.commands import environment

__all__ = ["run_step"]

POLL_INTERVAL = 2.0  # seconds between two looks at what a step has written
LOG_TAIL = 20  # lines of the log shown if a step fails


def run_step(title: str, command: list[str], log: Path, progress: Callable[[], list[str]] = list) -> None:
    """Run a command with its output in a log file, and print the lines about its progress as they become more."""
    print(f"\n{title}\n$ {shlex.join(command)}\n  log: {log}", flush=True)
    started, shown = time.monotonic(), 0
    with (
        open(log, "w") as file,
        subprocess.Popen(
            command, env=environment({"PYTHONUNBUFFERED": "1"}), stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            ended = False
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_INTERVAL)
                    ended = True
                lines = progress()
                print("".join(f"  {line}\n" for line in lines[shown:]), end="", flush=True)
                shown = len(lines)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise ChildProcessError(
            f"{title}: failed with exit status {process.returncode}.\n"
            f"command: {shlex.join(command)}\nlog: {log}, which ends with\n{tail}"
        )
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)
