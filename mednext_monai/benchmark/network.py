"""The sections ``forward`` and ``training``: one batch through every contestant."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .contestants import Contestant, autocast, build, make_input, names_for, output_gradients, run_reference, train_once
from .options import Options, VariantName
from .timing import Measurement, compare

__all__ = ["forward_once", "measure_networks"]


def measure_networks(options: Options, section: str) -> Iterator[Measurement]:
    """
    Time every variant at every size.

    A training step is forward with deep supervision and backward from fixed gradients of the five outputs: no loss, no
    optimiser.

    Args:
        options: those of the run.
        section: "forward" or "training".
    """
    for variant in options.variants:
        for size in options.size:
            yield _measure(options, section, variant, size)


def _measure(options: Options, section: str, variant: VariantName, size: int) -> Measurement:
    training = section == "training"
    x = make_input(options, (size,) * 3)
    gradients = output_gradients(options, size) if training else None
    reference = run_reference(options, variant, x, gradients)
    contestants = {c.name: c for c in build(options, variant, names_for(options, variant), training)}
    if training:
        steps = {n: partial(train_once, c, x, gradients, autocast(options)) for n, c in contestants.items()}
    else:
        steps = {n: partial(forward_once, c, x, options) for n, c in contestants.items()}
    compared = compare(
        steps,
        lambda name, outputs: reference.errors(contestants[name], outputs),
        options.repeats,
        options.warmup,
        options.device,
    )
    batch = f"{options.batch} x " if options.batch > 1 else ""
    case = f"{variant}, {batch}{size}^3"
    return Measurement(section, case, "s", **compared, work=options.batch * size**3 / 1e6, work_unit="Mvoxel/s")


def forward_once(contestant: Contestant, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, ...]:
    """One batch forward, without gradients; the outputs."""
    with torch.no_grad(), autocast(options):
        return contestant(x)
