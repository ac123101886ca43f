"""How far results are from a more accurate one, and when the kernels count as exact.

The exact result is that of the plain modules in the next wider type, float32 for half precision (without TF32) and
float64 for float32. Of every output and every gradient, the kernels' error must be at most ``FACTOR`` times that of the
plain modules in the type in use, or within ``ROUNDING`` of the exact tensor: its root mean square, and with
``LARGEST`` its largest element, which a few wrong voxels cannot hide in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

__all__ = ["TOLERANCE", "Error", "error", "worst"]

FACTOR = 2.0  # root mean square of the kernels' errors over that of the plain modules'
TINY = 1e-300  # no division by 0
LARGEST = 4.0  # the same for the largest error, which varies more
ROUNDING = {"float32": 2.0**-15, "float16": 2.0**-7, "bfloat16": 2.0**-4}  # a few roundings, in float32 sums of them
TOLERANCE = (
    f"root mean square error at most {FACTOR:g} times, largest error at most {LARGEST:g} times that of the plain "
    "modules, both against the next wider type, or within "
    + ", ".join(f"{value:.0e} ({name})" for name, value in ROUNDING.items())
    + " of the tensor"
)
SMALL = 2.0**-10  # of the largest tensor of a kind: below, gradients are rounding errors of others
# The norm removes the bias before it, whose gradient is 0: its errors are compared with the gradient of the norm's own.
SHIFTED = ("conv1.bias", "norm.bias")


class Error(NamedTuple):
    """The error of a tensor, relative to the exact one."""

    mean: float  # root mean square
    largest: float


def error(found: torch.Tensor, exact: torch.Tensor, size: Error) -> Error:
    """
    Return the error of a tensor.

    Args:
        found: the tensor, of any type.
        exact: the exact one, of the same shape.
        size: the root mean square and the largest absolute value that it is compared with.
    """
    if found.shape != exact.shape:
        return Error(math.inf, math.inf)
    return Error(*(part / max(whole, TINY) for part, whole in zip(_size(found.double() - exact.double()), size)))


def _size(x: torch.Tensor) -> Error:
    x = x.double()
    return Error(float(x.square().mean().sqrt()), float(x.abs().max()))


def _sizes(exact: Mapping[str, torch.Tensor]) -> dict[str, Error]:
    """Return what the errors of each tensor are compared with: its own size, or that of the others if it is nothing."""
    own = {name: _size(tensor) for name, tensor in exact.items()}
    sizes = {}
    for name, size in own.items():
        kind = [other for key, other in own.items() if key.split()[0] == name.split()[0]]
        smallest = Error(*(SMALL * max(values) for values in zip(*kind)))
        related = own.get(name.removesuffix(SHIFTED[0]) + SHIFTED[1], size) if name.endswith(SHIFTED[0]) else size
        sizes[name] = Error(*map(max, size, related, smallest))
    return sizes


def worst(
    kernels: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor], type: str
) -> tuple[str, Error, Error, bool]:
    """
    Compare the results of a step by name.

    Args:
        kernels: those of the kernels, under names such as "output 0" and "gradient of stem.weight".
        plain: those of the plain modules.
        exact: those of the plain modules in a wider type.
        type: a key of ``ROUNDING``, the type in use.

    Returns:
        the name of the tensor that is nearest to or farthest beyond what is allowed, the kernels' error there, that of
        the plain modules, and whether all tensors are within what is allowed.
    """
    found, sizes = [], _sizes(exact)
    for name, reference in exact.items():
        own, theirs = (error(results[name], reference, sizes[name]) for results in (kernels, plain))
        rounding = 1.0 if name.endswith(SHIFTED[0]) else ROUNDING[type]
        found.append((max(_excess(own, theirs, rounding)), name, own, theirs))
    excess, name, own, theirs = max(found, key=lambda item: item[0])
    return name, own, theirs, excess <= 1


def _excess(own: Error, theirs: Error, rounding: float) -> tuple[float, float]:
    """Return the parts of what is allowed that an error takes; above 1 it is too large, infinite if it is NaN."""
    allowed = max(FACTOR * theirs.mean, rounding), max(LARGEST * theirs.largest, rounding)
    parts = own.mean / allowed[0], own.largest / allowed[1]
    return tuple(part if math.isfinite(part) else math.inf for part in parts)  # type: ignore[return-value]
