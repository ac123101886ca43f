"""The sections ``forward``, ``training`` and ``window``.

- forward: one batch, without gradients.
- training: a forward pass with deep supervision and a backward pass from fixed gradients of the five outputs; no loss,
  no optimizer.
- window: a whole volume, the way a bundle predicts it. Ours and plain use ``mednext_monai.inferers.MedNeXtInferer``,
  here with MONAI's windows and weights, the others MONAI's ``SlidingWindowInferer``. That averages what the network
  returns and has no mirror images, so the others return the softmax, averaged over eight mirror images if wanted.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import combinations, product

import torch
from monai.inferers import SlidingWindowInferer

from mednext_monai.inferers import MedNeXtInferer
from mednext_monai.networks import using_backend

from .contestants import IN_CHANNELS, OUT_CHANNELS, Contestant, autocast, build, names_for, without
from .timing import Measurement, compare, seconds

__all__ = ["case_name", "measure_networks", "measure_window", "reference", "relative_error", "run_once", "step_inputs"]

Tensors = Sequence[torch.Tensor]
Errors = Callable[[Contestant, Tensors], dict[str, float]]
WINDOWS = {"sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125}


def measure_networks(options: Namespace, training: bool) -> Iterator[Measurement]:
    """Time a forward pass, or a training step, of every variant at every size."""
    section = "training" if training else "forward"
    for variant, size in product(options.variants, options.size):
        x, gradients = step_inputs(size, options.batch, options.device, training)
        errors = reference(options, variant, x, gradients)
        step = partial(_run, options=options, x=x, gradients=gradients)
        fields = _compare(options, variant, training, step, errors, x)
        yield Measurement(section, case_name(options, variant, size), "s", **fields)


def measure_window(options: Namespace) -> Iterator[Measurement]:
    """Time the prediction of the volume with every variant, without and with mirror images as ``--mirror`` says."""
    mirrors = {"off": [False], "on": [True], "both": [False, True]}[options.mirror]
    shape = "x".join(map(str, options.volume))
    for variant, mirror in product(options.variants, mirrors):
        volume = torch.randn(options.batch, IN_CHANNELS, *options.volume, generator=torch.Generator().manual_seed(0))
        volume = volume.to(options.device)
        plain = build(options, variant, ["plain"], training=False)["plain"]
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = SlidingWindowInferer(options.roi, **WINDOWS)(volume, partial(_probabilities, plain, mirror))
        step = partial(_predict, options=options, mirror=mirror, volume=volume)
        fields = _compare(options, variant, False, step, partial(_errors, [expected], {}), volume)
        case = f"{variant.replace('_', ' ')}, {shape} by {options.roi}^3, mirror {'on' if mirror else 'off'}"
        yield Measurement("window", case, "s", **fields)


def _compare(
    options: Namespace, variant: str, training: bool, step: Callable, errors: Errors, x: torch.Tensor
) -> dict[str, object]:
    """Time a step, a function of the contestant, of all contestants; return fields of a ``Measurement``."""
    contestants = build(options, variant, names_for(options, variant), training)
    steps = {name: partial(step, contestant) for name, contestant in contestants.items()}
    measure = partial(seconds, device=options.device)
    compared = compare(
        steps, measure, options.repeats, options.warmup, lambda name, out: errors(contestants[name], out)
    )
    compared["skipped"] |= without(options, variant)
    return {**compared, "work": x.numel() / 1e6, "work_unit": "Mvoxel/s"}


def case_name(options: Namespace, variant: str, size: int) -> str:
    """Return what a step runs, such as "S k3, 2 x 64^3"."""
    batch = f"{options.batch} x " if options.batch > 1 else ""
    return f"{variant.replace('_', ' ')}, {batch}{size}^3"


def step_inputs(size: int, batch: int, device: str, training: bool) -> tuple[torch.Tensor, Tensors | None]:
    """Return an input ``(batch, 1, size, size, size)`` and, for training, gradients of the outputs, each of norm 1."""
    x = torch.randn(batch, IN_CHANNELS, size, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    if not training:
        return x, None
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, OUT_CHANNELS, *[max(size >> level, 1)] * 3) for level in range(5)]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    return x, [(gradient / gradient.numel() ** 0.5).to(device) for gradient in gradients]


def _run(contestant: Contestant, options: Namespace, x: torch.Tensor, gradients: Tensors | None) -> Tensors:
    return run_once(contestant, x, gradients, autocast(options, contestant.kind))


def run_once(
    contestant: Contestant, x: torch.Tensor, gradients: Tensors | None, context: AbstractContextManager
) -> Tensors:
    """Run a forward pass in a context or, given gradients of the outputs, a training step; return the outputs."""
    if gradients is None:
        with torch.no_grad(), context:
            return contestant(x)
    contestant.network.zero_grad(set_to_none=True)
    with using_backend(contestant.backend):
        with context:
            outputs = contestant(x)
        torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(gradients, outputs)])
    return tuple(output.detach() for output in outputs)


def reference(options: Namespace, variant: str, x: torch.Tensor, gradients: Tensors | None) -> Errors:
    """Run the plain modules in the type ``--reference``, without TF32, and return a function that gives the errors."""
    dtype, training = getattr(torch, options.reference), gradients is not None
    plain = build(options, variant, ["plain"], training)["plain"]
    plain.network.to(dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = run_once(plain, x.to(dtype), gradients, nullcontext())
    return partial(_errors, expected, plain.gradients() if training else {})


def _errors(
    expected: Tensors, gradients: dict[str, torch.Tensor], contestant: Contestant, outputs: Tensors
) -> dict[str, float]:
    found = {"output": relative_error(outputs, expected)}
    if gradients:
        own = contestant.gradients()
        found["gradient"] = relative_error([own[name] for name in gradients], gradients.values())
    return found


def relative_error(found: Tensors, expected: Tensors) -> float:
    """Return the largest absolute difference over the largest absolute value of all tensors; NaN if there is one."""
    differences = torch.stack([(a.double() - b.double()).abs().max() for a, b in zip(found, expected)])
    return float(differences.max() / torch.stack([b.double().abs().max() for b in expected]).max())


def _predict(contestant: Contestant, options: Namespace, mirror: bool, volume: torch.Tensor) -> Tensors:
    if contestant.kind in ("ours", "plain"):
        inferer = MedNeXtInferer(options.roi, mirror=mirror, windows="monai", **WINDOWS)
        network = partial(_logits, contestant)
    else:
        inferer = SlidingWindowInferer(options.roi, **WINDOWS)
        network = partial(_probabilities, contestant, mirror)
    with torch.no_grad(), autocast(options, contestant.kind):
        return [inferer(volume, network)]


def _logits(contestant: Contestant, window: torch.Tensor) -> torch.Tensor:
    return contestant(window)[0]


def _probabilities(contestant: Contestant, mirror: bool, window: torch.Tensor) -> torch.Tensor:
    flips = [axes for count in range(4) for axes in combinations((2, 3, 4), count)] if mirror else [()]
    return sum(contestant(window.flip(axes))[0].float().softmax(1).flip(axes) for axes in flips) / len(flips)
