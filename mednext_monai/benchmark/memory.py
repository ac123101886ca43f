"""The section ``memory``: peak memory of one step, in a fresh process per contestant and round.

On a CPU it is the growth of the process's largest resident size over what it was before the step, after a step on a
small input, which loads libraries and starts threads. Linux keeps that mark per program and can set it back; without
``/proc``, ``getrusage`` gives it. On a GPU it is the growth of ``torch.cuda.max_memory_allocated`` after a first step
of the same size, so that cuDNN's search for algorithms is not counted.

A server process imports torch and MONAI once and is forked for each contestant, where the system can fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import platform
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .contestants import COMPILED, autocast, build, make_input, names_for, output_gradients, train_once
from .network import forward_once
from .options import FACTOR, Options, VariantName
from .timing import OURS, Measurement

__all__ = ["measure_memory", "peak_of"]

MIB = 2**20
ROUNDS = 3  # at most: a process starts for each
UNCERTAIN = "The C library's reuse of memory makes runs of the same code differ by up to some 30 MiB."


def measure_memory(options: Options) -> Iterator[Measurement]:
    """Measure one forward and one training step of every contestant at every variant and size."""
    for variant in options.variants:
        for size in options.size:
            for step in ("forward", "training"):
                yield _measure(options, variant, size, step)


def _measure(options: Options, variant: VariantName, size: int, step: str) -> Measurement:
    values: dict[str, list[float]] = {name: [] for name in names_for(options, variant)}
    skipped = {}
    if torch.device(options.device).type == "cpu":
        skipped = {name: "on a CPU the compiler's own memory would be counted" for name in values if COMPILED in name}
    for _ in range(min(options.repeats, ROUNDS)):
        for name in values:
            if name in skipped:
                continue
            try:
                values[name].append(_in_a_process(options, variant, size, step, name))
            except (RuntimeError, ValueError) as error:
                if name == OURS:
                    raise
                skipped[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    values = {name: found for name, found in values.items() if name not in skipped}
    batch = f"{options.batch} x " if options.batch > 1 else ""
    case = f"{step} {variant}, {batch}{size}^3"
    notes = [UNCERTAIN] if torch.device(options.device).type == "cpu" else []
    return Measurement("memory", case, "MiB", values, skipped=skipped, notes=notes)


def _in_a_process(options: Options, variant: VariantName, size: int, step: str, name: str) -> float:
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # a process that is killed ends in a RuntimeError
        return pool.submit(_peak, options, variant, size, step, name).result()


def _peak(options: Options, variant: VariantName, size: int, step: str, name: str) -> float:
    """Build one contestant in this process and return the peak memory of one step in MiB."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    (contestant,) = build(options, variant, [name], training=step == "training")

    def step_at(size: int, batch: int) -> Callable[[], object]:
        sized = replace(options, batch=batch)
        x = make_input(sized, (size,) * 3)
        if step == "forward":
            return partial(forward_once, contestant, x, sized)
        return partial(train_once, contestant, x, output_gradients(sized, size), autocast(sized))

    real = step_at(size, options.batch)
    first = real if device.type == "cuda" else step_at(2 * FACTOR, 1)  # MONAI's norm refuses smaller ones
    first()
    contestant.network.zero_grad(set_to_none=True)
    return peak_of(real, device)


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
        ctypes.CDLL(None).malloc_trim(0)  # what the first step left behind would serve the second unseen
    before = _largest_resident(reset=True)
    step()
    return _largest_resident() - before


def _largest_resident(reset: bool = False) -> float:
    """The largest resident size of this program so far in MiB, set back to the present one beforehand if wanted."""
    status = Path("/proc/self/status")
    marks = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else []
    if marks:  # not getrusage: a new process inherits the mark of its parent
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
            return _largest_resident()
        return int(marks[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
