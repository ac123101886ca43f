"""One block in training on the CPU, where its autograd function computes it.

Everything that the function does not know is left to the plain modules: other devices and types, autocast with float16,
other norms, groups, modules that were replaced or have hooks, and everything that looks at the operators (tracing,
compiling, ``torch.func``, forward-mode derivatives, dispatch modes).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ...blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from .autograd import block_function
from .common import (
    Block,
    BlockParameters,
    block_parameters,
    has_residual,
    is_observed,
    is_on_cpu,
    is_parameter_like,
    is_published_block,
    keeps_metadata,
    lifted,
)
from .precision import type_here, wants_bfloat16

__all__ = ["run", "takes"]

FLOATS = (torch.float32, torch.float64)
LEAST_VOXELS = {3: 0, 2: 4096}  # of an image, below which the plain modules are faster in 2D, measured
TYPES = (MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock)  # themselves: a subclass may compute something else


def takes(block: nn.Module, x: torch.Tensor) -> bool:
    """Return whether ``block`` is a published block and a gradient of what it computes for ``x`` is wanted."""
    return (
        type(block) in TYPES
        and torch.is_grad_enabled()
        and not is_observed(allow_bfloat16=True)
        and (is_parameter_like(x) or type(x) is MetaTensor)
        and is_on_cpu(x, *((torch.float32, torch.bfloat16) if wants_bfloat16() else FLOATS))
        and x.dim() == 2 + block.spatial_dims  # type: ignore[operator]  # of a block
        and x[0, 0].numel() >= LEAST_VOXELS[x.dim() - 2]
        and x.numel() > 0
        and _is_ordinary_block(block, x)
    )


def _is_ordinary_block(block: Any, x: torch.Tensor) -> bool:
    """Return whether the block is as it was built, its parameters are like the input, and a gradient is wanted."""
    out_channels = x.shape[1] if block.stride == 1 and block.use_residual else None
    if not is_published_block(block, x.shape[1], out_channels):
        return False
    parameters = [parameter for parameter in block_parameters(block) if parameter is not None]
    dtype = torch.float32 if wants_bfloat16() else x.dtype
    return all(is_parameter_like(p) and p.dtype == dtype and p.device == x.device for p in parameters) and (
        x.requires_grad or any(p.requires_grad for p in parameters)
    )


@keeps_metadata
def run(block: Block, x: torch.Tensor) -> torch.Tensor:
    """
    Compute a block that :py:func:`takes` accepts, differentiable in the input and in every parameter.

    Under autocast with bfloat16, volumes are bfloat16 if that is faster on this processor (``precision``).

    Args:
        block: the block.
        x: its input, ``(B, C, D, H, W)`` or, for a 2D block, ``(B, C, H, W)``.

    Returns:
        the block's output in channels-last storage.
    """
    if wants_bfloat16():
        x = x.to(type_here(x))
    is_flat = block.spatial_dims == 2
    parameters = BlockParameters._make(None if p is None else lifted(p) for p in block_parameters(block))
    kind = block.stride, block.transposed, has_residual(block), block.norm.eps
    out = block_function(lifted(x), parameters, *kind, is_flat)
    return out.squeeze(3) if is_flat else out
