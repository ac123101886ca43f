"""The section ``memory``: peak memory of one step, in a fresh process per contestant and round.

On a CPU it is the growth of the process's peak resident size over its size before the step, after a step on a small
input, which loads libraries and starts threads. Linux can reset that peak; without ``/proc``, ``getrusage`` is used.
On a GPU it is the growth of ``torch.cuda.max_memory_allocated`` after a first step of the same size, so that cuDNN's
search for algorithms is not counted.
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import torch

from mednext_monai.networks import SHAPE_FACTOR

from .contestants import COMPILED, autocast, build, names_for, without
from .network import case_name, run_once, step_inputs
from .timing import Measurement, Step, compare

__all__ = ["measure_memory", "peak_of"]

MIB = 2**20
ROUNDS = 3  # at most: each starts a process per contestant
UNCERTAIN = "The C library's reuse of memory makes runs of the same code differ by up to some 30 MiB."


def measure_memory(options: Namespace) -> Iterator[Measurement]:
    """Measure one forward and one training step of every contestant at every variant and size."""
    on_cpu = torch.device(options.device).type == "cpu"
    for variant, size, step in product(options.variants, options.size, ("forward", "training")):
        names = names_for(options, variant)
        left_out = [name for name in names if on_cpu and COMPILED in name]
        arguments = options, variant, size, step == "training"
        steps = {name: partial(_peak_in_a_process, *arguments, name) for name in names if name not in left_out}
        compared = compare(steps, lambda step: step(), min(options.repeats, ROUNDS))
        compared["skipped"] |= dict.fromkeys(left_out, "on a CPU the compiler's own memory would be counted")
        compared["skipped"] |= without(options, variant)
        case, notes = f"{step} {case_name(options, variant, size)}", [UNCERTAIN] * on_cpu
        yield Measurement("memory", case, "MiB", **compared, notes=notes)


def _peak_in_a_process(*arguments: object) -> float:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch and MONAI are imported once
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # raises a RuntimeError if the process is killed
        return pool.submit(_peak, *arguments).result()


def _peak(options: Namespace, variant: str, size: int, training: bool, name: str) -> float:
    """Build one contestant in this process and return the peak memory of one step in MiB."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    contestant = build(options, variant, [name], training)[name]

    def step_at(size: int, batch: int) -> Step:
        return partial(
            run_once, contestant, *step_inputs(size, batch, options.device, training), autocast(options, name)
        )

    step = step_at(size, options.batch)
    first = step if device.type == "cuda" else step_at(2 * SHAPE_FACTOR, 1)  # MONAI's norm refuses smaller ones
    first()
    contestant.network.zero_grad(set_to_none=True)
    return peak_of(step, device)


def peak_of(step: Step, device: torch.device) -> float:
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
