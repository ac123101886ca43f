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
from .observers import is_observed
from .structure import is_published_block

__all__ = ["can_train_fast", "train_fast"]

CONVOLUTIONS = {"same": (nn.Conv3d, 1), "down": (nn.Conv3d, 2), "up": (nn.ConvTranspose3d, 2)}  # and their stride


def can_train_fast(block: nn.Module, x: torch.Tensor, kind: str) -> bool:
    """
    Return whether ``train_fast`` computes this block, one of the three of ``blocks``, for this input.

    Args:
        block: a ``MedNeXtBlock``, ``MedNeXtDownBlock`` or ``MedNeXtUpBlock``, not a subclass.
        x: its input.
        kind: which of the three, as in ``autograd.KINDS``.
    """
    return _is_ordinary_call() and _is_ordinary_input(x) and _is_ordinary_block(block, x, kind)


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


def _is_ordinary_block(block: nn.Module, x: torch.Tensor, kind: str) -> bool:
    """Return whether the block is as it was built, its parameters are like the input, and a gradient is wanted."""
    out_channels = x.shape[1] if kind == "same" and block.use_residual else None
    if not is_published_block(block, *CONVOLUTIONS[kind], x.shape[1], out_channels):
        return False
    parameters = [parameter for parameter in _parameters(block) if parameter is not None]
    return all(
        type(p) in (torch.Tensor, nn.Parameter) and p.dtype == x.dtype and p.device == x.device for p in parameters
    ) and (x.requires_grad or any(p.requires_grad for p in parameters))


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
