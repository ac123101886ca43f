"""Whether modules are the ones that ``blocks`` builds, so that what is computed in their place is their function."""

from __future__ import annotations

import torch.nn as nn

from ..norms import ChannelGroupNorm
from .observers import HOOKS

__all__ = ["is_exactly", "is_pointwise", "is_published_block"]


def is_exactly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is of the type itself, without hooks or a ``forward`` of its own."""
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, f"_{hooks}") for hooks in HOOKS)
    )


def is_pointwise(conv: nn.Module, convolution: type[nn.Module], stride: int = 1) -> bool:
    """Return whether a module is a 1x1 convolution of the type and stride, with a bias and without groups."""
    return is_exactly(conv, convolution) and conv.groups == 1 and _has_geometry(conv, 1, stride)


def is_published_block(
    block: nn.Module, convolution: type[nn.Module], stride: int, in_channels: int, out_channels: int | None
) -> bool:
    """Return whether a block holds the unaltered modules of norm "group" without GRN.

    Args:
        block: one of the blocks of ``blocks``.
        convolution: type of its depthwise and its residual convolution.
        stride: of these two.
        in_channels: channels of its input.
        out_channels: channels of its output; ``None`` for any.
    """
    conv, norm = block.conv1, block.norm
    residual = getattr(block, "res_conv", None)
    return (
        is_exactly(conv, convolution)
        and is_exactly(norm, ChannelGroupNorm)
        and is_exactly(block.act, nn.GELU)
        and block.act.approximate == "none"
        and not block.use_grn
        and norm.affine
        and in_channels == conv.groups == conv.in_channels == conv.out_channels == norm.num_channels == norm.num_groups
        and _has_geometry(conv, conv.kernel_size[0], stride)
        and is_pointwise(block.conv2, nn.Conv3d)
        and is_pointwise(block.conv3, nn.Conv3d)
        and out_channels in (None, block.conv3.out_channels)
        and (residual is None or is_pointwise(residual, convolution, stride))
    )


def _has_geometry(conv: nn.Module, kernel_size: int, stride: int) -> bool:
    return (
        conv.kernel_size == (kernel_size,) * 3
        and kernel_size % 2 == 1
        and conv.stride == (stride,) * 3
        and conv.padding == (kernel_size // 2,) * 3
        and conv.dilation == (1, 1, 1)
        and conv.output_padding == (0, 0, 0)
        and conv.padding_mode == "zeros"
        and conv.bias is not None
    )
