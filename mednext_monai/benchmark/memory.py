"""The section ``memory``: peak memory of one step, in a fresh process per contestant and round.

On a CPU it is the growth of the process's peak resident size over its size before the step, after a step on a small
input, which loads libraries and starts threads. Linux can reset that peak; without ``/proc``, ``getrusage`` is used.
On a GPU it is the growth of ``torch.cuda.max_memory_allocated`` after a first step of the same size, so that cuDNN's
search for algorithms is not counted.

A server process imports torch and MONAI once and is forked for each measurement.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import platform
import re
import resource
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from mednext_monai.networks import SHAPE_FACTOR

from .contestants import COMPILED, autocast, build, names_for
from .network import case_name, run_once, step_inputs
from .timing import Measurement, compare

__all__ = ["measure_memory", "peak_of"]

MIB = 2**20
ROUNDS = 3  # at most: each starts a process per contestant
UNCERTAIN = "The C library's reuse of memory makes runs of the same code differ by up to some 30 MiB."


def measure_memory(options: Namespace) -> Iterator[Measurement]:
    """Measure one forward and one training step of every contestant at every variant and size."""
    for variant in options.variants:
        for size in options.size:
            for step in ("forward", "training"):
                yield _measure(options, variant, size, step)


def _measure(options: Namespace, variant: str, size: int, step: str) -> Measurement:
    names, skipped, notes = names_for(options, variant), {}, []
    if torch.device(options.device).type == "cpu":
        skipped = {name: "on a CPU the compiler's own memory would be counted" for name in names if COMPILED in name}
        notes = [UNCERTAIN]
    peak = partial(_in_a_process, _peak, options, variant, size, step == "training")
    peaks = {name: partial(peak, name) for name in names if name not in skipped}
    compared = compare(peaks, lambda step: step(), min(options.repeats, ROUNDS))
    compared["skipped"] |= skipped
    return Measurement("memory", f"{step} {case_name(options, variant, size)}", "MiB", **compared, notes=notes)


def _in_a_process(function: Callable[..., float], *arguments: object) -> float:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # raises a RuntimeError if the process is killed
        return pool.submit(function, *arguments).result()


def _peak(options: Namespace, variant: str, size: int, training: bool, name: str) -> float:
    """Build one contestant in this process and return the peak memory of one step in MiB."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    contestant = build(options, variant, [name], training)[name]

    def step_at(size: int, batch: int) -> Callable[[], object]:
        return partial(run_once, contestant, *step_inputs(size, batch, options.device, training), autocast(options))

    step = step_at(size, options.batch)
    first = step if device.type == "cuda" else step_at(2 * SHAPE_FACTOR, 1)  # MONAI's norm refuses smaller ones
    first()
    contestant.network.zero_grad(set_to_none=True)
    return peak_of(step, device)


def peak_of(step: Callable[[], object], device: torch.device) -> float:
    """Run a step and return by how many MiB the memory in use grew at its peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # otherwise the step would reuse, uncounted, what the first step freed
    before = _peak_resident(reset=True)
    step()
    return _peak_resident() - before


def _peak_resident(reset: bool = False) -> float:
    """Return the peak resident size of this process in MiB, first reset to the present size if wanted and possible."""
    status = Path("/proc/self/status")
    if not (status.exists() and "VmHWM" in status.read_text()):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    if reset:  # getrusage's peak cannot be reset, and a new process inherits that of its parent
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
