"""What inference and training share: when modules and tensors are ordinary, a block's parameters, metadata."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ...blocks import ChannelGroupNorm, MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from .precision import wants_bfloat16

__all__ = [
    "CONVOLUTIONS",
    "Block",
    "BlockParameters",
    "block_parameters",
    "has_residual",
    "is_exactly",
    "is_observed",
    "is_on_cpu",
    "is_parameter_like",
    "is_pointwise",
    "is_published_block",
    "is_transformed",
    "keeps_metadata",
    "lifted",
]

Block = MedNeXtBlock | MedNeXtDownBlock | MedNeXtUpBlock
M = TypeVar("M", bound=nn.Module)
CONVOLUTIONS = {3: (nn.Conv3d, nn.ConvTranspose3d), 2: (nn.Conv2d, nn.ConvTranspose2d)}  # plain and transposed
HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")  # of a module, with a _ before


# --- calls and tensors -----------------------------------------------------------------------------------------------


def is_observed(allow_bfloat16: bool = False) -> bool:
    """Return whether something is active that looks at or changes operations, which only the plain modules serve.

    That is compilation, autocast (unless with bfloat16, if that is allowed), and what :py:func:`is_transformed` names.
    """
    is_cast = torch.is_autocast_enabled("cpu") and not (allow_bfloat16 and wants_bfloat16())
    return torch.compiler.is_compiling() or is_cast or is_transformed()


def is_transformed() -> bool:
    """Return whether a function transform, forward-mode gradients, a mode or a global hook is active."""
    return bool(
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or any(getattr(nn.modules.module, f"_global_{hooks}") for hooks in HOOKS)
    )


def is_on_cpu(x: torch.Tensor, *dtypes: torch.dtype) -> bool:
    """Return whether a tensor is an ordinary dense one on the CPU, of one of the dtypes."""
    return x.device.type == "cpu" and x.dtype in dtypes and x.layout == torch.strided and not x.is_neg()


def is_parameter_like(x: torch.Tensor) -> bool:
    """Return whether a tensor is of no subclass of ``torch.Tensor`` but ``Parameter``."""
    return type(x) in (torch.Tensor, nn.Parameter)


def keeps_metadata(run: Callable[[M, torch.Tensor], torch.Tensor]) -> Callable[[M, torch.Tensor], torch.Tensor]:
    """Decorate a function of a module and a tensor: a ``MetaTensor`` gives a ``MetaTensor`` with its metadata."""

    @functools.wraps(run)
    def run_on_tensor(module: M, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, MetaTensor):
            return MetaTensor(run(module, x.as_tensor())).copy_meta_from(x)
        return run(module, x)

    return run_on_tensor


def lifted(x: torch.Tensor) -> torch.Tensor:
    """
    Return an image or kernel as a volume of one voxel along a new axis, a view; a volume is returned as it is.

    The axis is put between the two of the image, so that slabs are made of its rows and rows stay rows.

    Args:
        x: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
    """
    return x.unsqueeze(3) if x.dim() == 4 else x


# --- modules ---------------------------------------------------------------------------------------------------------


class BlockParameters(NamedTuple):
    """The parameters of one block, in the order in which it applies them; the last two belong to ``res_conv``."""

    depthwise_weight: torch.Tensor
    depthwise_bias: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expansion_weight: torch.Tensor
    expansion_bias: torch.Tensor
    compression_weight: torch.Tensor
    compression_bias: torch.Tensor
    residual_weight: torch.Tensor | None
    residual_bias: torch.Tensor | None


def block_parameters(block: Block) -> BlockParameters:
    """Return the parameters of a block for which :py:func:`is_published_block` is true."""
    modules: tuple[Any, ...] = (block.conv1, block.norm, block.conv2, block.conv3)
    inner = [parameter for module in modules for parameter in (module.weight, module.bias)]
    residual = block.res_conv
    return BlockParameters(*inner, *((None, None) if residual is None else (residual.weight, residual.bias)))


def has_residual(block: Block) -> bool:
    """Return whether the block adds its input, as it is or through ``res_conv``."""
    return block.use_residual if block.stride == 1 else block.res_conv is not None


def is_exactly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is of the type itself, without hooks or a ``forward`` of its own."""
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, f"_{hooks}") for hooks in HOOKS)
    )


def is_pointwise(conv: Any, kind: type[nn.Module], stride: int = 1) -> bool:
    """Return whether a module is a 1x1 convolution of the type and stride, with a bias and without groups."""
    return is_exactly(conv, kind) and conv.groups == 1 and _has_geometry(conv, 1, stride)


def is_published_block(block: Block, in_channels: int, out_channels: int | None) -> bool:
    """
    Return whether a block holds the unaltered modules of norm "group" without GRN.

    Args:
        block: one of the blocks of ``blocks``.
        in_channels: channels of its input.
        out_channels: channels of its output; ``None`` for any.
    """
    conv, residual = block.conv1, block.res_conv
    norm: Any = block.norm
    plain, transposed = CONVOLUTIONS[block.spatial_dims]
    kind = transposed if block.transposed else plain
    return (
        is_exactly(conv, kind)
        and is_exactly(norm, ChannelGroupNorm)
        and is_exactly(block.act, nn.GELU)
        and block.act.approximate == "none"
        and not block.use_grn
        and norm.affine
        and in_channels == conv.groups == conv.in_channels == conv.out_channels == norm.num_channels == norm.num_groups
        and _has_geometry(conv, conv.kernel_size[0], block.stride)
        and is_pointwise(block.conv2, plain)
        and is_pointwise(block.conv3, plain)
        and out_channels in (None, block.conv3.out_channels)
        and (residual is None or is_pointwise(residual, kind, block.stride))
    )


def _has_geometry(conv: Any, kernel_size: int, stride: int) -> bool:
    axes = conv.weight.dim() - 2
    return (
        conv.kernel_size == (kernel_size,) * axes
        and kernel_size % 2 == 1
        and conv.stride == (stride,) * axes
        and conv.padding == (kernel_size // 2,) * axes
        and conv.dilation == (1,) * axes
        and conv.output_padding == (0,) * axes
        and conv.padding_mode == "zeros"
        and conv.bias is not None
    )
