"""How a MedNeXt block runs on the operators of this package."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import operators
from .block import Block

__all__ = ["block_forward"]


def _check_device(x: torch.Tensor) -> None:
    if x.is_cuda and operators.installed and not operators.interpreted:
        return
    if operators.installed and operators.interpreted:
        return
    if not operators.installed:
        raise RuntimeError("The backend 'triton' needs the package triton, which is not installed.")
    raise RuntimeError(
        f"The backend 'triton' needs a CUDA device, and got a tensor on {x.device}. Choose the backend 'auto', or, to "
        "check the kernels on a CPU, set the environment variable TRITON_INTERPRET=1 before Python starts."
    )


def block_forward(block: Block, x: torch.Tensor) -> torch.Tensor:
    """
    Compute a block that :py:func:`.block.takes` accepts.

    Args:
        block: the block.
        x: its input, ``(B, C, D, H, W)``.

    Raises:
        RuntimeError: if Triton is not installed, or ``x`` is not on a CUDA device and Triton does not interpret.
    """
    _check_device(x)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    conv = block.conv1
    y = operators.depthwise_conv3d(x, conv.weight, conv.bias, block.stride, block.transposed)
    if block.transposed:
        return F.pad(_up(block, x, y), [1, 0, 1, 0, 1, 0])
    if block.stride == 2:
        residual = None if block.res_conv is None else block.res_conv(x)
    else:
        residual = x if block.use_residual else None
    return _norm_mlp(block, y, block.conv3.bias, residual)


def _norm_mlp(block: Block, y: torch.Tensor, b3: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    norm, conv2, conv3 = block.norm, block.conv2, block.conv3
    return operators.norm_mlp(
        y, norm.weight, norm.bias, conv2.weight.flatten(1), conv2.bias, conv3.weight.flatten(1), b3, residual, norm.eps
    )[0]


def _up(block: Block, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The block before padding. Its residual is the bias, and at every second voxel the product at low resolution."""
    if block.res_conv is None:
        return _norm_mlp(block, y, block.conv3.bias, None)
    out = _norm_mlp(block, y, block.conv3.bias + block.res_conv.bias, None)
    out[:, :, ::2, ::2, ::2] += F.conv3d(x, block.res_conv.weight.transpose(0, 1))
    return out
