"""The MedNeXt network, a U-Net of MedNeXt blocks with four down- and four up-sampling steps, and its variants.

Source: Roy et al., MICCAI 2023 (https://arxiv.org/abs/2303.09975), figure 1 and table 1, and the behavior of the
authors' code (MIC-DKFZ/MedNeXt, Apache-2.0), from which the checkpointing of M and L comes. Written anew for MONAI;
parameter names are the authors'. MONAI's own ``monai.networks.nets.MedNeXt`` gives its down-sampling blocks the
expansion ratio of the stage above and is therefore, for B, M and L, another network than the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from monai.networks.layers.factories import Conv

from . import dispatch
from .blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock

__all__ = ["KERNEL_SIZES", "SHAPE_FACTOR", "STAGES", "VARIANTS", "MedNeXt", "Variant", "create_mednext"]

STAGES = 9  # four in the encoder, the bottleneck, four in the decoder
SHAPE_FACTOR = 16  # by which the input's spatial sizes must be divisible: four halvings
KERNEL_SIZES = (3, 5)  # published; other odd ones work as well


class MedNeXt(nn.Module):
    """
    MedNeXt v1 for semantic segmentation.

    Maps an image ``(B, in_channels, *spatial)``, each spatial size a multiple of 16, to logits
    ``(B, out_channels, *spatial)``. With ``deep_supervision`` and in training mode it returns five such tensors at
    full, 1/2, 1/4, 1/8 and 1/16 resolution, full resolution first, as :py:class:`monai.losses.DeepSupervisionLoss`
    accepts them. In evaluation mode it always returns one tensor and does not compute the auxiliary heads.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3. Defaults to 3.
        in_channels: number of image channels. Defaults to 1.
        out_channels: number of classes, background included. Defaults to 2.
        base_channels: number of channels at full resolution, doubled at every halving. Defaults to 32.
        expansion_ratio: one ratio for every stage, or nine: four encoder stages, bottleneck, four decoder stages from
            the lowest resolution up. A down- or up-sampling block has the ratio of the stage it leads to.
            Defaults to 2, the S variant.
        block_counts: blocks in each of the nine stages, in the same order. Defaults to two each, the S variant.
        kernel_size: edge of the depthwise kernels in voxels, odd. Defaults to 3.
        encoder_kernel_size: kernel size of the four encoder stages and the down-sampling blocks.
            Defaults to ``None``, ``kernel_size``.
        decoder_kernel_size: kernel size of the bottleneck, the up-sampling blocks and the four decoder stages.
            Defaults to ``None``, ``kernel_size``.
        use_residual: whether blocks add their input to their output. Defaults to ``True``.
        use_residual_resampling: whether down- and up-sampling blocks add a 1x1 convolution of their input.
            Defaults to ``True``.
        deep_supervision: whether to build the four auxiliary heads and return their outputs in training mode.
            Defaults to ``False``.
        norm: ``"group"`` (one group per channel, published) or ``"layer"`` (over channels). Defaults to ``"group"``.
        use_grn: whether to apply global response normalization in the blocks; as in the authors' code never in the
            first down-sampling block. Defaults to ``False``.
        use_checkpoint: what the backward pass of training computes again instead of storing it: ``True`` or
            ``"block"`` for whole blocks, ``"expansion"`` for all but their depthwise convolution; see
            :py:class:`MedNeXtBlock`. Same outputs and gradients, less memory, more time. Defaults to ``False``.

    Raises:
        ValueError: if an argument is invalid, or, from ``forward``, if the input has another rank or number of
            channels or a size that is not a multiple of 16. (Not checked in traced, scripted or compiled code, whose
            input sizes are not plain numbers.)

    Example::

        net = MedNeXt(in_channels=1, out_channels=3, expansion_ratio=2, kernel_size=3)
        logits = net(torch.rand(1, 1, 64, 64, 64))  # (1, 3, 64, 64, 64)
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 32,
        expansion_ratio: int | Sequence[int] = 2,
        block_counts: Sequence[int] = (2,) * STAGES,
        kernel_size: int = 3,
        encoder_kernel_size: int | None = None,
        decoder_kernel_size: int | None = None,
        use_residual: bool = True,
        use_residual_resampling: bool = True,
        deep_supervision: bool = False,
        norm: str = "group",
        use_grn: bool = False,
        use_checkpoint: bool | str = False,
    ) -> None:
        super().__init__()
        ratios = (expansion_ratio,) * STAGES if isinstance(expansion_ratio, int) else tuple(expansion_ratio)
        _check_network_arguments(spatial_dims, in_channels, out_channels, ratios, block_counts)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.deep_supervision = deep_supervision
        width = [base_channels * 2**level for level in range(5)]
        encoder = kernel_size if encoder_kernel_size is None else encoder_kernel_size
        decoder = kernel_size if decoder_kernel_size is None else decoder_kernel_size
        common: dict[str, Any] = {"norm": norm, "use_checkpoint": use_checkpoint}

        def stage(index: int, kernel: int) -> nn.Sequential:
            n, ratio = width[min(index, 8 - index)], ratios[index]
            options = {"use_residual": use_residual, "use_grn": use_grn, **common}
            return nn.Sequential(
                *(MedNeXtBlock(spatial_dims, n, n, ratio, kernel, **options) for _ in range(block_counts[index]))
            )

        def down(level: int) -> MedNeXtDownBlock:  # from this level to the next lower resolution
            n, ratio, options = width[level], ratios[level + 1], {"use_grn": use_grn and level > 0, **common}
            return MedNeXtDownBlock(spatial_dims, n, 2 * n, ratio, encoder, use_residual_resampling, **options)

        def up(level: int) -> MedNeXtUpBlock:  # to this level
            n, ratio, options = width[level], ratios[8 - level], {"use_grn": use_grn, **common}
            return MedNeXtUpBlock(spatial_dims, 2 * n, n, ratio, decoder, use_residual_resampling, **options)

        # In the order in which the authors' code creates them, so that a seed gives the same initial weights.
        self.stem = Conv[Conv.CONV, spatial_dims](in_channels, width[0], kernel_size=1)
        self.enc_block_0 = stage(0, encoder)
        self.down_0 = down(0)
        self.enc_block_1 = stage(1, encoder)
        self.down_1 = down(1)
        self.enc_block_2 = stage(2, encoder)
        self.down_2 = down(2)
        self.enc_block_3 = stage(3, encoder)
        self.down_3 = down(3)
        self.bottleneck = stage(4, decoder)
        self.up_3 = up(3)
        self.dec_block_3 = stage(5, decoder)
        self.up_2 = up(2)
        self.dec_block_2 = stage(6, decoder)
        self.up_1 = up(1)
        self.dec_block_1 = stage(7, decoder)
        self.up_0 = up(0)
        self.dec_block_0 = stage(8, decoder)
        self.out_0 = MedNeXtOutBlock(spatial_dims, width[0], out_channels)
        heads = [  # without deep supervision named for TorchScript, which compiles the training branch either way
            MedNeXtOutBlock(spatial_dims, width[level], out_channels) if deep_supervision else nn.Identity()
            for level in range(1, 5)
        ]
        self.out_1, self.out_2, self.out_3, self.out_4 = heads

    def forward(
        self, x: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        if not torch.jit.is_scripting():
            if not torch.jit.is_tracing() and not torch.compiler.is_compiling():
                self._check_input(x)
            run = dispatch.find(self, x)
            if run is not None:
                return run(x)
        return self.run_blocks(x)

    def run_blocks(
        self, x: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the output from one block after the other, whichever implementation computes each of them."""
        # with n = base_channels: (B, C, D, H, W) -> (B, n, D, H, W)
        skip_0 = self.enc_block_0(self.stem(x))
        skip_1 = self.enc_block_1(self.down_0(skip_0))  # -> (B, 2n, D/2, H/2, W/2)
        skip_2 = self.enc_block_2(self.down_1(skip_1))  # -> (B, 4n, D/4, H/4, W/4)
        skip_3 = self.enc_block_3(self.down_2(skip_2))  # -> (B, 8n, D/8, H/8, W/8)
        x_4 = self.bottleneck(self.down_3(skip_3))  # -> (B, 16n, D/16, H/16, W/16)
        x_3 = self.dec_block_3(skip_3 + self.up_3(x_4))  # -> (B, 8n, D/8, H/8, W/8)
        x_2 = self.dec_block_2(skip_2 + self.up_2(x_3))  # -> (B, 4n, D/4, H/4, W/4)
        x_1 = self.dec_block_1(skip_1 + self.up_1(x_2))  # -> (B, 2n, D/2, H/2, W/2)
        x_0 = self.dec_block_0(skip_0 + self.up_0(x_1))  # -> (B, n, D, H, W)
        if self.deep_supervision and self.training:
            return self.out_0(x_0), self.out_1(x_1), self.out_2(x_2), self.out_3(x_3), self.out_4(x_4)
        return self.out_0(x_0)

    def shape_factor(self) -> list[int]:
        """Return the factor, per spatial axis, by which the input's size must be divisible: 16."""
        return [SHAPE_FACTOR] * self.spatial_dims

    def is_valid_shape(self, x: torch.Tensor) -> bool:
        """Return whether every spatial size of ``x``, ``(B, C, *spatial)``, is a multiple of ``shape_factor()``."""
        return all(size % factor == 0 for size, factor in zip(x.shape[2:], self.shape_factor()))

    def _check_input(self, x: torch.Tensor) -> None:
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"MedNeXt with spatial_dims={self.spatial_dims} expects an input of {self.spatial_dims + 2} dimensions "
                f"(batch, channel, space), got shape {tuple(x.shape)}."
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"MedNeXt expects {self.in_channels} input channels, got shape {tuple(x.shape)}.")
        if not self.is_valid_shape(x):
            raise ValueError(
                f"MedNeXt expects spatial sizes divisible by {SHAPE_FACTOR}, got {tuple(x.shape[2:])}; "
                "pad the input or choose another patch size."
            )


class Variant(NamedTuple):
    """What distinguishes one variant: arguments of :py:class:`MedNeXt` of the same names."""

    expansion_ratio: tuple[int, ...]
    block_counts: tuple[int, ...]
    use_checkpoint: bool | str = False  # in training
    use_grn: bool = False
    base_channels: int = 32


VARIANTS = {
    "S": Variant((2, 2, 2, 2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2, 2, 2, 2)),
    "B": Variant((2, 3, 4, 4, 4, 4, 4, 3, 2), (2, 2, 2, 2, 2, 2, 2, 2, 2)),
    "M": Variant((2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3), use_checkpoint=True),
    "L": Variant((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3), use_checkpoint=True),
}


def create_mednext(
    variant: str,
    kernel_size: int = 3,
    spatial_dims: int = 3,
    in_channels: int = 1,
    out_channels: int = 2,
    deep_supervision: bool = False,
    use_checkpoint: bool | str | None = None,
    **kwargs: Any,
) -> MedNeXt:
    """
    Build a published MedNeXt.

    Args:
        variant: a name in ``VARIANTS``: ``"S"``, ``"B"``, ``"M"`` or ``"L"``.
        kernel_size: edge of the depthwise kernels in voxels; 3 and 5 are published. Defaults to 3.
        spatial_dims: number of spatial dimensions, 2 or 3. Defaults to 3.
        in_channels: number of image channels. Defaults to 1.
        out_channels: number of classes, background included. Defaults to 2.
        deep_supervision: whether to build the auxiliary heads. Defaults to ``False``.
        use_checkpoint: as for :py:class:`MedNeXt`. Defaults to ``None``, as published: ``True`` for M and L.
        kwargs: further arguments of :py:class:`MedNeXt`; they take precedence over the variant's.

    Raises:
        ValueError: if there is no such variant, or an argument is invalid.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {variant!r}.")
    arguments = VARIANTS[variant]._asdict()
    if use_checkpoint is not None:
        arguments["use_checkpoint"] = use_checkpoint
    return MedNeXt(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        deep_supervision=deep_supervision,
        **{**arguments, **kwargs},
    )


def _check_network_arguments(
    spatial_dims: int, in_channels: int, out_channels: int, ratios: tuple[int, ...], block_counts: Sequence[int]
) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    for name, values in (("expansion_ratio", ratios), ("block_counts", tuple(block_counts))):
        if len(values) != STAGES or any(not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(f"{name} must hold {STAGES} positive integers, got {list(values)}.")
