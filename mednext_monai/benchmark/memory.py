"""The section ``memory``: peak memory of one step, in a fresh process per contestant.

On a CPU it is the growth of the process's largest resident size over what it was before the step, after a step on a
small input, which loads libraries and starts threads. Linux keeps that mark per program and can set it back; without
``/proc``, ``getrusage`` gives it. On a GPU it is the growth of ``torch.cuda.max_memory_allocated`` after a first step
of the same size, so that cuDNN's search for algorithms is not counted.

``python -m mednext_monai.benchmark.memory JSON`` is the process; what it prints last is the answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .contestants import COMPILED, autocast, build, make_input, names_for, output_gradients, train_once
from .network import forward_once
from .options import FACTOR, Options, VariantName
from .timing import OURS, Measurement

__all__ = ["measure_memory", "peak_of"]

MIB = 2**20


def measure_memory(options: Options) -> Iterator[Measurement]:
    """Measure one forward and one training step of every contestant at every variant and size."""
    for variant in options.variants:
        for size in options.size:
            for step in ("forward", "training"):
                yield _measure(options, variant, size, step)


def _measure(options: Options, variant: VariantName, size: int, step: str) -> Measurement:
    values, skipped = {}, {}
    for name in names_for(options, variant):
        if name.endswith(COMPILED) and torch.device(options.device).type == "cpu":
            skipped[name] = "on a CPU the compiler's own memory would be counted"
            continue
        try:
            values[name] = [_in_a_process(options, variant, size, step, name)]
        except RuntimeError as error:
            if name == OURS:
                raise
            skipped[name] = str(error)
    batch = f"{options.batch} × " if options.batch > 1 else ""
    return Measurement("memory", f"{step} {variant}, {batch}{size}³", "MiB", values, skipped=skipped)


def _in_a_process(options: Options, variant: VariantName, size: int, step: str, name: str) -> float:
    task = {"options": asdict(options), "variant": variant, "size": size, "step": step, "name": name}
    command = [sys.executable, "-m", "mednext_monai.benchmark.memory", json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1][:200])
    return float(result.stdout.split()[-1])


def peak_of(step: Callable[[], object], device: torch.device) -> float:
    """Run a step and return by how many MiB the memory in use grew at its peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
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


def _main(task: dict) -> None:
    variant = VariantName(*task["variant"])
    options = Options(**task["options"])
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    (contestant,) = build(options, variant, [task["name"]], training=task["step"] == "training")

    def step_at(size: int, batch: int) -> Callable[[], object]:
        sized = replace(options, batch=batch)
        x = make_input(sized, (size,) * 3)
        if task["step"] == "forward":
            return lambda: forward_once(contestant, x, sized)
        gradients = output_gradients(sized, size)
        return lambda: train_once(contestant, x, gradients, autocast(sized))

    real = step_at(task["size"], options.batch)
    first = real if device.type == "cuda" else step_at(2 * FACTOR, 1)  # smaller, MONAI's norm refuses to train
    first()
    contestant.network.zero_grad(set_to_none=True)
    print(peak_of(real, device))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
