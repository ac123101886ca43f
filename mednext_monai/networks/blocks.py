"""The four blocks of MedNeXt, each usable alone in another network, and their two norms.

Source: Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation", MICCAI 2023
(https://arxiv.org/abs/2303.09975), figure 1, and the behavior of the authors' code (MIC-DKFZ/MedNeXt, Apache-2.0).
Written anew for MONAI; the parameter names (``conv1``, ``norm``, ``conv2``, ``conv3``, ``res_conv``, ``conv_out``,
``grn_beta``, ``grn_gamma``) are the authors', so that their state dicts load unchanged.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch.utils.checkpoint import checkpoint

from . import dispatch

__all__ = [
    "ChannelGroupNorm",
    "ChannelLayerNorm",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtOutBlock",
    "MedNeXtUpBlock",
]

NORMS = ("group", "layer")
CHECKPOINTS = (False, True, "block", "expansion")


class ChannelLayerNorm(nn.Module):
    """
    Layer normalization over the channels of every voxel, for channels-first input of any size.

    ``torch.nn.LayerNorm`` needs the channels last; MONAI's ``MedNeXt`` normalizes over kernel-sized windows instead.

    Args:
        num_channels: number of channels C of the input ``(B, C, *spatial)``.
        eps: added to the variance. Defaults to 1e-5.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(dim=1, keepdim=True)
        x = centered * torch.rsqrt(centered.square().mean(dim=1, keepdim=True) + self.eps)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class ChannelGroupNorm(nn.GroupNorm):
    """
    ``torch.nn.GroupNorm`` that also accepts one voxel per channel, as in the bottleneck for an input of 16 per axis.

    The module in torch refuses that for a batch of one; its operator returns the bias, the normalized value being 0.
    Channels-last images are copied on a CPU: for them, the operator adds up squares so that 0.001 is lost at 512 x 512.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4 and x.device.type == "cpu":
            x = x.contiguous()
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _BlockBase(nn.Module):
    """
    Depthwise convolution, norm, expansion, GELU, [GRN], compression: what the three block types share.

    A subclass sets the stride of the depthwise convolution and whether it is transposed, and adds the residual in
    ``_forward``. The arguments are those of :py:class:`MedNeXtBlock`.
    """

    stride = 1
    transposed = False

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        expansion_ratio: int = 4,
        kernel_size: int = 3,
        use_residual: bool = True,
        norm: str = "group",
        groups: int | None = None,
        use_grn: bool = False,
        use_checkpoint: bool | str = False,
    ) -> None:
        super().__init__()
        groups = in_channels if groups is None else groups
        _check_block_arguments(spatial_dims, in_channels, out_channels, expansion_ratio, kernel_size, norm, groups)
        if not isinstance(use_checkpoint, (bool, str)) or use_checkpoint not in CHECKPOINTS:
            raise ValueError(f"use_checkpoint must be one of {CHECKPOINTS}, got {use_checkpoint!r}.")
        if use_residual and self.stride == 1 and in_channels != out_channels:
            raise ValueError(
                f"use_residual=True needs out_channels equal to in_channels, got {in_channels} and {out_channels}."
            )
        conv = Conv[Conv.CONV, spatial_dims]
        strided_conv = Conv[Conv.CONVTRANS if self.transposed else Conv.CONV, spatial_dims]
        hidden_channels = expansion_ratio * in_channels
        self.spatial_dims = spatial_dims
        self.use_residual = use_residual
        self.use_grn = use_grn
        self.use_checkpoint = use_checkpoint == "block" or use_checkpoint  # False, True or "expansion"
        self.conv1 = strided_conv(
            in_channels, in_channels, kernel_size, stride=self.stride, padding=kernel_size // 2, groups=groups
        )
        self.norm: ChannelGroupNorm | ChannelLayerNorm = (
            ChannelGroupNorm(in_channels, in_channels) if norm == "group" else ChannelLayerNorm(in_channels)
        )
        self.conv2 = conv(in_channels, hidden_channels, kernel_size=1)
        self.act = nn.GELU()
        self.conv3 = conv(hidden_channels, out_channels, kernel_size=1)
        if use_grn:
            shape = [1, hidden_channels] + [1] * spatial_dims
            self.grn_beta = nn.Parameter(torch.zeros(shape))
            self.grn_gamma = nn.Parameter(torch.zeros(shape))
        else:  # named for TorchScript, which compiles `_grn` either way
            self.register_parameter("grn_beta", None)
            self.register_parameter("grn_gamma", None)
        has_res_conv = use_residual and self.stride > 1
        self.res_conv = strided_conv(in_channels, out_channels, 1, stride=self.stride) if has_res_conv else None

    def _transform(self, x: torch.Tensor) -> torch.Tensor:
        """The block without residual, with C' hidden channels; ``(d, h, w)`` is the size after the depthwise one."""
        if torch.jit.is_scripting():
            x = self.conv1(x)  # (B, C_in, D, H, W) -> (B, C_in, d, h, w)
        else:
            x = self._depthwise(x)
            if self.use_checkpoint == "expansion" and self.training:
                return checkpoint(self._pointwise, x, use_reentrant=False)
        return self._pointwise(x)

    def _depthwise(self, x: torch.Tensor) -> torch.Tensor:
        """
        The depthwise convolution, in float32 where the gradient of its weight would be garbage.

        That is on a CPU under autocast (torch 2.13, bfloat16, channels-last) if an axis is not longer than the kernel.
        """
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            if torch.is_grad_enabled() and min(x.shape[2:]) <= self.conv1.kernel_size[0]:
                with torch.autocast("cpu", enabled=False):
                    return self.conv1(x.to(self.conv1.weight.dtype))
        return self.conv1(x)

    def _pointwise(self, x: torch.Tensor) -> torch.Tensor:
        """What follows the depthwise convolution; the norm belongs to it, so that only its input is stored."""
        x = self.act(self.conv2(self.norm(x)))  # (B, C_in, d, h, w) -> (B, C', d, h, w)
        if self.use_grn:
            x = self._grn(x)
        return self.conv3(x)  # (B, C', d, h, w) -> (B, C_out, d, h, w)

    def _grn(self, x: torch.Tensor) -> torch.Tensor:
        """Global response normalization (Woo et al., "ConvNeXt V2", CVPR 2023), over all voxels of each channel."""
        gamma, beta = self.grn_gamma, self.grn_beta
        if gamma is None or beta is None:  # narrows the type for TorchScript
            return x
        response = x.flatten(2).norm(p=2, dim=2)  # (B, C', D, H, W) -> (B, C')
        response = response.reshape([x.shape[0], x.shape[1]] + [1] * (x.dim() - 2))
        response = response / (response.mean(dim=1, keepdim=True) + 1e-6)
        return gamma * (x * response) + beta + x

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            run = dispatch.find(self, x) or self._forward
            if self.use_checkpoint is True and self.training:
                return checkpoint(run, x, use_reentrant=False)
            return run(x)
        return self._forward(x)


class MedNeXtBlock(_BlockBase):
    """
    MedNeXt block: depthwise convolution, norm, 1x1 expansion, GELU, 1x1 compression, residual.

    Maps ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        expansion_ratio: hidden channels per input channel between the two 1x1 convolutions. Defaults to 4.
        kernel_size: edge of the depthwise kernel in voxels, odd. Defaults to 3.
        use_residual: whether to add the input to the output, which needs as many output as input channels.
            Defaults to ``True``.
        norm: ``"group"`` for one group per channel, ``"layer"`` for normalization over the channels of every voxel.
            Defaults to ``"group"``.
        groups: number of groups of the depthwise convolution. Defaults to ``None``, one per input channel.
        use_grn: whether to apply global response normalization after the GELU. Defaults to ``False``.
        use_checkpoint: what the backward pass of training computes again instead of storing it: same outputs and
            gradients, less memory, more time. ``True`` or ``"block"``: the block; ``"expansion"``: what follows the
            depthwise convolution (norm, expansion, GELU, compression), which takes less time again but stores the
            depthwise convolution's output. The optimized implementations compute that part again in any case.
            Defaults to ``False``.

    Raises:
        ValueError: if an argument is invalid.
    """

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._transform(x)
        return x + y if self.use_residual else y


class MedNeXtDownBlock(_BlockBase):
    """
    MedNeXt block whose depthwise convolution has stride 2: halves every axis (rounding up).

    Maps ``(B, in_channels, *spatial)`` to ``(B, out_channels, *ceil(spatial / 2))``.

    Args:
        use_residual: whether to add a strided 1x1 convolution of the input (``res_conv``). Defaults to ``True``.

    The other arguments are those of :py:class:`MedNeXtBlock`.
    """

    stride = 2

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._transform(x)
        return y if self.res_conv is None else y + self.res_conv(x)


class MedNeXtUpBlock(_BlockBase):
    """
    MedNeXt block whose depthwise convolution is transposed with stride 2: doubles every axis.

    Maps ``(B, in_channels, *spatial)`` to ``(B, out_channels, *(2 * spatial))``. The transposed convolution yields
    ``2 * spatial - 1`` voxels; as in the authors' code, one plane of zeros is put before the first of each axis.

    Args:
        use_residual: whether to add a transposed strided 1x1 convolution of the input (``res_conv``).
            Defaults to ``True``.

    The other arguments are those of :py:class:`MedNeXtBlock`.
    """

    stride = 2
    transposed = True

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._transform(x)
        if self.res_conv is not None:
            y = y + self.res_conv(x)
        return F.pad(y, [1, 0] * self.spatial_dims)  # (B, C_out, 2D-1, 2H-1, 2W-1) -> (B, C_out, 2D, 2H, 2W)


class MedNeXtOutBlock(nn.Module):
    """
    Segmentation head: maps ``(B, in_channels, *spatial)`` to logits ``(B, out_channels, *spatial)``.

    A transposed 1x1 convolution, which is a 1x1 convolution with a weight of shape
    ``(in_channels, out_channels, 1, ...)``; kept transposed so that published weights fit.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of classes, background included.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_out = Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(x)


def _check_block_arguments(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    expansion_ratio: int,
    kernel_size: int,
    norm: str,
    groups: int,
) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    positive = {"in_channels": in_channels, "out_channels": out_channels, "expansion_ratio": expansion_ratio}
    for name, value in positive.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd integer, got {kernel_size!r}.")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}.")
    if groups < 1 or in_channels % groups:
        raise ValueError(f"groups must divide in_channels={in_channels}, got {groups}.")
