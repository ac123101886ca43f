"""The whole network on the Triton kernels where ``mednext tune`` has measured that they are exact and faster.

Registered under the backend ``"auto"``. It takes a network, an input and a mode for which ``table`` has an entry of
this GPU, and nothing else; without entries it asks no more than whether there are some.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from ... import dispatch
from ...blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from ...mednext import MedNeXt
from ..cpu.common import is_parameter_like, is_transformed
from ..cpu.network import has_published_structure
from .precision import allows_tf32
from .table import Key, is_interpreting, keys_of

__all__ = ["key", "run", "structure", "takes"]

_interpreting = is_interpreting()
BLOCKS = (MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock)


def takes(network: nn.Module, x: torch.Tensor) -> bool:
    """Return whether the kernels were measured for exactly this network, input and mode on this GPU."""
    if not isinstance(network, MedNeXt) or not (x.is_cuda or _interpreting) or not _is_any_measured(x.device):
        return False
    training, compiled = network.training, torch.compiler.is_compiling()
    if training != torch.is_grad_enabled() or not is_parameter_like(x) or (not compiled and is_transformed()):
        return False
    shapes = _shapes(network, x.device, x.dtype, _autocast(x), training, compiled)
    return any(x.shape == shape for shape in shapes)  # in compiled code, which then holds for this shape alone


def run(network: MedNeXt, x: torch.Tensor) -> Any:
    """Compute a network that :py:func:`takes` accepts."""
    with dispatch.preferring("triton"):
        return network.run_blocks(x)


def key(network: MedNeXt, x: torch.Tensor, compiled: bool) -> Key | None:
    """Return the entry that ``takes`` would look for now, or ``None`` if it takes no such network."""
    found = structure(network)
    if found is None or network.training != torch.is_grad_enabled():
        return None
    return Key(found, tuple(x.shape), _types(network, x.dtype, _autocast(x)), network.training, compiled)


def structure(network: MedNeXt) -> tuple | None:
    """
    Return what distinguishes a network from others, apart from its values: its layers and which are checkpointed.

    ``None`` for one that is not made of the unaltered modules, as in 2D, with other norms or with hooks; whose
    parameters are not of one type; or, in training mode, not all trained.
    """
    parameters = list(network.parameters())
    first = parameters[0]
    is_ordinary = all(
        is_parameter_like(p)
        and (p.dtype, p.device) == (first.dtype, first.device)
        and (p.requires_grad or not network.training)
        for p in parameters
    )
    if not is_ordinary or not has_published_structure(network):
        return None
    blocks: list[Any] = [module for module in network.modules() if isinstance(module, BLOCKS)]
    return (
        (network.in_channels, network.out_channels, network.deep_supervision),
        *(
            (
                type(block).__name__,
                *block.conv2.weight.shape[1::-1],
                block.conv3.out_channels,
                block.conv1.kernel_size[0],
                block.use_residual,
                block.use_checkpoint,
            )
            for block in blocks
        ),
    )


def _autocast(x: torch.Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _types(network: MedNeXt, x: torch.dtype, autocast: torch.dtype | None) -> tuple[str, str, str]:
    return str(network.stem.weight.dtype), str(x), "" if autocast is None else str(autocast)


def _is_any_measured(device: torch.device) -> bool:
    return bool(keys_of(device))


def _shapes(
    network: MedNeXt,
    device: torch.device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    training: bool,
    compiled: bool,
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of inputs for which the kernels were measured."""
    if autocast is None and allows_tf32():  # the kernels then round otherwise than measured
        return ()
    types = _types(network, dtype, autocast)
    fitting = [k for k in keys_of(device) if (k.types, k.training, k.compiled) == (types, training, compiled)]
    if not fitting:
        return ()
    found = structure(network)
    return tuple(sorted(k.shape for k in fitting if k.structure == found))


# What torch.compiler.assume_constant_result does, without loading the compiler: compiled code holds the result, as it
# holds the network and the modes.
for _function in (_is_any_measured, _shapes):
    vars(_function)["_dynamo_marked_constant"] = True
