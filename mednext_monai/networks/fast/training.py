"""Whether a block can be trained by ``block_function``, and its use where it can.

Everything that the function does not know goes the plain way: other devices and types, autocast, other norms, groups,
modules that were replaced or watched by hooks, and everything that looks at the operators (tracing, compiling,
``torch.func``, forward-mode derivatives, dispatch modes).
"""

from __future__ import annotations

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ..backend import get_backend
from .autograd import BlockParameters, block_function
from .observers import HOOKS, is_observed

__all__ = ["can_train_fast", "train_fast"]

CONVS = (nn.Conv3d, nn.ConvTranspose3d)


def can_train_fast(block: nn.Module, x: torch.Tensor) -> bool:
    """
    Return whether ``train_fast`` computes this block, one of the three of ``blocks``, for this input.

    Args:
        block: a ``MedNeXtBlock``, ``MedNeXtDownBlock`` or ``MedNeXtUpBlock``, not a subclass.
        x: its input.
    """
    return _is_ordinary_call() and _is_ordinary_input(x) and _is_ordinary_block(block, x)


def _is_ordinary_call() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not torch.is_grad_enabled()
        or get_backend() != "auto"
        or is_observed()
    )


def _is_ordinary_input(x: torch.Tensor) -> bool:
    return (
        type(x) in (torch.Tensor, nn.Parameter, MetaTensor)
        and x.dim() == 5
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.dtype in (torch.float32, torch.float64)
    )


def _is_ordinary_block(block: nn.Module, x: torch.Tensor) -> bool:
    """Return whether the modules are the ones the block was built with, their parameters plain and like the input."""
    convs = [block.conv2, block.conv3]
    if getattr(block, "res_conv", None) is not None:
        convs.append(block.res_conv)
    modules = [block.conv1, block.norm, block.act, *convs]
    depthwise = block.conv1
    if block.use_grn or any(getattr(module, f"_{hooks}") for module in modules for hooks in HOOKS):
        return False
    if type(depthwise) not in (nn.Conv3d, nn.ConvTranspose3d) or any(type(c) not in CONVS for c in convs):
        return False
    if not isinstance(block.norm, nn.GroupNorm) or type(block.act) is not nn.GELU or block.act.approximate != "none":
        return False
    channels, edge = x.shape[1], depthwise.kernel_size[0]
    parameters = _parameters(block)
    optional = 2 if len(convs) == 2 else 0
    return (
        depthwise.in_channels == depthwise.out_channels == depthwise.groups == block.norm.num_groups == channels
        and depthwise.kernel_size == (edge,) * 3
        and depthwise.padding == (edge // 2,) * 3
        and depthwise.dilation == (1, 1, 1)
        and depthwise.padding_mode == "zeros"
        and all(
            type(p) in (torch.Tensor, nn.Parameter) and p.dtype == x.dtype and p.device == x.device
            for p in parameters[: len(parameters) - optional]
        )
        and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters))
    )


def _parameters(block: nn.Module) -> BlockParameters:
    residual = getattr(block, "res_conv", None)
    modules = (block.conv1, block.norm, block.conv2, block.conv3)
    inner = [parameter for module in modules for parameter in (module.weight, module.bias)]
    return BlockParameters(*inner, *((None, None) if residual is None else (residual.weight, residual.bias)))


def train_fast(block: nn.Module, x: torch.Tensor, kind: str, use_residual: bool) -> torch.Tensor:
    """
    Compute a block for which ``can_train_fast`` is true.

    Args:
        block: the block.
        x: its input, ``(B, C, D, H, W)``. A ``MetaTensor`` gives a ``MetaTensor`` with the input's metadata.
        kind: one of ``autograd.KINDS``.
        use_residual: whether the block adds its input.

    Returns:
        The block's output in channels-last storage.
    """
    volume = x.as_tensor() if isinstance(x, MetaTensor) else x
    y = block_function(volume, _parameters(block), kind, use_residual, block.norm.eps)
    return MetaTensor(y).copy_meta_from(x) if isinstance(x, MetaTensor) else y
