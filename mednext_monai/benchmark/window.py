"""The section ``window``: a whole volume, the way a bundle predicts it, with and without mirror images.

Ours and plain go through :py:class:`mednext_monai.inferers.MedNeXtInferer`, here with the windows and weights of MONAI,
the others through MONAI's ``SlidingWindowInferer``. Since that averages what the network returns and knows no mirror
images, their network is wrapped to return the softmax, averaged over the eight mirror images if wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from math import prod

import torch
from monai.inferers import SlidingWindowInferer

from mednext_monai.inferers import MedNeXtInferer

from .contestants import Contestant, autocast, build, make_input, names_for, relative_error
from .options import Options, VariantName
from .timing import Measurement, compare

__all__ = ["measure_window"]

WINDOWS = {"sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125}


def measure_window(options: Options) -> Iterator[Measurement]:
    """Time every variant on the volume, without and with mirror images as the options say."""
    for variant in options.variants:
        for mirror in {"off": (False,), "on": (True,), "both": (False, True)}[options.mirror]:
            yield _measure(options, variant, mirror)


def _measure(options: Options, variant: VariantName, mirror: bool) -> Measurement:
    volume = make_input(options, options.volume)
    contestants = build(options, variant, names_for(options, variant), training=False)
    (plain,) = build(options, variant, ["plain"], training=False)
    inferer = SlidingWindowInferer(options.roi, **WINDOWS)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = inferer(volume, _probabilities(plain, mirror))
    compared = compare(
        {contestant.name: _step(contestant, volume, mirror, options) for contestant in contestants},
        lambda name, found: {"output": relative_error([found], [expected])},
        options.repeats,
        options.warmup,
        options.device,
    )
    shape = "x".join(map(str, options.volume))
    case = f"{variant}, {shape} by {options.roi}^3, mirror {'on' if mirror else 'off'}"
    work = options.batch * prod(options.volume) / 1e6
    return Measurement("window", case, "s", **compared, work=work, work_unit="Mvoxel/s")


def _step(contestant: Contestant, volume: torch.Tensor, mirror: bool, options: Options) -> Callable[[], torch.Tensor]:
    if contestant.is_ours:
        inferer = MedNeXtInferer(options.roi, mirror=mirror, windows="monai", **WINDOWS)
        function = partial(_logits, contestant)
    else:
        inferer = SlidingWindowInferer(options.roi, **WINDOWS)
        function = _probabilities(contestant, mirror)

    def step() -> torch.Tensor:
        with torch.no_grad(), autocast(options):
            return inferer(volume, function)

    return step


def _logits(contestant: Contestant, window: torch.Tensor) -> torch.Tensor:
    return contestant(window)[0]


def _probabilities(contestant: Contestant, mirror: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    axes = [flip for flip in product((False, True), repeat=3) if mirror or not any(flip)]
    flips = [tuple(axis + 2 for axis, flipped in enumerate(flip) if flipped) for flip in axes]

    def predict(window: torch.Tensor) -> torch.Tensor:
        return sum(contestant(window.flip(f))[0].float().softmax(1).flip(f) for f in flips) / len(flips)

    return predict
