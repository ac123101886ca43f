"""The check and the times of one case, in a process of its own: ``python -m mednext_monai.tuning.measure``.

Its arguments are the JSON files of a case and of the result, and the device. The second appears as soon as something is
known, and is replaced when the measurement is complete. The kernels run as the backend ``"auto"`` will run them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..benchmark.timing import seconds
from ..files import read_json, write_atomically
from ..networks import MedNeXt, using_backend
from ..networks.backends.triton import measured, table
from .cases import Case
from .errors import TOLERANCE, worst

__all__ = ["ROUNDS", "measure"]

WARMUP = 2  # beside the step whose results are compared
ROUNDS = 10
GRADIENT = 2.0**-6  # root mean square of the gradients of the outputs: that of a scaled loss in mixed precision
Results = dict[str, torch.Tensor]


def measure(
    case: Case,
    device: torch.device,
    rounds: int = ROUNDS,
    report: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """
    Compare the kernels with the plain modules, and time both.

    Args:
        case: what is measured.
        device: the GPU; a CPU under Triton's interpreter.
        rounds: number of times that both are timed, in turn. Defaults to 10.
        report: called with what is known before a kernel runs: ``key`` and ``environment``.

    Returns:
        ``problem``, a text, if the kernels cannot be used; ``key`` and ``environment`` unless it is the network;
        ``error`` and ``plain_error`` of ``tensor``, the worst one, in root mean squares, and ``tolerance``; and, if all
        are exact, ``seconds`` and, on a GPU, ``memory`` (peak bytes beside the network's) of ``plain`` and ``triton``.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # the plain modules at their best
    step = _Step(case, device)
    with step.mode():
        key = measured.key(step.network, step.x, case.compiled)
    if key is None:
        return {"problem": "the kernels do not compute such a network"}
    found: dict[str, Any] = {"environment": table.environment(step.x.device), "key": key._asdict()}
    report(dict(found))
    with table.trial(key):
        runs = {"plain": step.of("plain"), "triton": step.of("auto")}
        plain, kernels = step.results(runs["plain"]), step.results(runs["triton"])
        if all(torch.equal(kernels[name], plain[name]) for name in plain):
            return {**found, "problem": "the kernels were not used"}
        name, own, theirs, is_exact = worst(kernels, plain, step.exact(), case.autocast or "float32")
        found |= {"tensor": name, "error": own.mean, "plain_error": theirs.mean, "tolerance": TOLERANCE}
        if not is_exact:
            text = f"{name} has a relative error of {own.mean:.1e} (largest {own.largest:.1e}), the plain modules have "
            return {**found, "problem": f"wrong result: {text}{theirs.mean:.1e} ({theirs.largest:.1e})"}
        return {**found, **_times(runs, device, rounds)}


def _times(runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, Any]:
    memory = {}
    for name, run in runs.items():
        for _ in range(WARMUP if device.type == "cuda" else 0):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            memory[name] = torch.cuda.max_memory_allocated(device) - before
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {"seconds": times, **({"memory": memory} if memory else {})}


class _Step:
    """A forward pass, or a forward and a backward pass, of a network with random weights on a random input."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.network = MedNeXt(**case.network).to(device).train(case.training)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)  # also norms whose weight is 1 and bias 0
        self.x = torch.randn(case.shape, device=device)
        self.gradients: list[torch.Tensor] | None = None  # of the outputs

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Switch to gradients or none, and to the types of the case."""
        autocast = self.case.autocast
        dtype = None if autocast is None else getattr(torch, autocast)
        with (
            torch.set_grad_enabled(self.case.training),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield

    def of(self, backend: str) -> Callable[[], list[torch.Tensor]]:
        """Return a function that runs a step with a backend and returns the outputs."""
        network = torch.compile(self.network) if self.case.compiled else self.network

        def run() -> list[torch.Tensor]:
            with using_backend(backend):
                return self._run(self.network, network, self.x)

        return run

    def _run(self, network: MedNeXt, compiled: Callable, x: torch.Tensor) -> list[torch.Tensor]:
        network.zero_grad(set_to_none=True)
        with self.mode():
            outputs = compiled(x)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        if self.case.training:
            if self.gradients is None:
                self.gradients = [GRADIENT * torch.randn_like(output, dtype=torch.float32) for output in outputs]
            torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(self.gradients, outputs)])
        return [output.detach() for output in outputs]

    def results(self, run: Callable[[], list[torch.Tensor]]) -> Results:
        """Run a step and return its outputs and gradients by name."""
        return self._named(run(), self.network)

    def exact(self) -> Results:
        """Return the outputs and gradients of the plain modules in the next wider type, with little memory."""
        wider = torch.float64 if self.case.autocast is None else torch.float32
        network = MedNeXt(**{**self.case.network, "use_checkpoint": True}).to(self.device, wider)
        network.load_state_dict(self.network.state_dict())
        self.network.zero_grad(set_to_none=True)
        network.train(self.case.training)
        case, self.case = self.case, self.case._replace(autocast=None)
        try:
            with using_backend("plain"), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
                outputs = self._run(network, network, self.x.to(wider))
        finally:
            self.case = case
        return self._named(outputs, network)

    def _named(self, outputs: list[torch.Tensor], network: MedNeXt) -> Results:
        found = {f"output {number}": output for number, output in enumerate(outputs)}
        if self.case.training:
            for name, parameter in network.named_parameters():
                found[f"gradient of {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return {name: tensor.clone() for name, tensor in found.items()}


def main(arguments: list[str]) -> int:
    """Measure a case; arguments as the module's docstring says."""
    source, target, device = arguments

    def write(result: dict[str, Any]) -> None:
        write_atomically(Path(target), json.dumps(result).encode())

    on_gpu = torch.device(device).type == "cuda"
    write(measure(Case(**read_json(source)), torch.device(device), ROUNDS if on_gpu else 1, write))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
