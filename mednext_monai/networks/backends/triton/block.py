"""When a MedNeXt block runs on the operators of this package.

They are imported when a block first runs: that registers them with torch and loads Triton.
"""

from __future__ import annotations

import torch
import torch.nn as nn

from ...blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock

__all__ = ["DTYPES", "Block", "run", "takes"]

Block = MedNeXtBlock | MedNeXtDownBlock | MedNeXtUpBlock

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def takes(block: nn.Module, x: torch.Tensor) -> bool:
    """Return whether the operators compute ``block`` for ``x``: 3D, one group per channel, no GRN, no float64."""
    return (
        isinstance(block, Block)
        and block.spatial_dims == 3
        and x.dtype in DTYPES
        and block.conv1.groups == block.conv1.in_channels
        and isinstance(block.norm, nn.GroupNorm)
        and block.norm.num_groups == block.norm.num_channels
        and not block.use_grn
    )


def run(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Compute a block that :py:func:`takes` accepts; see :py:func:`.forward.block_forward`."""
    from .forward import block_forward

    return block_forward(block, x)
