"""The authors' own names and arguments, so that code written for MIC-DKFZ/MedNeXt migrates by changing an import::

    from mednext_monai.upstream import MedNeXt, MedNeXtBlock, create_mednext_v1, upkern_load_weights

Thin wrappers over ``mednext_monai.networks`` and ``mednext_monai.weights``; a state dict of the original loads
unchanged. Differences from the original (behavior of commit 0b78ed8):

- In evaluation mode a network with deep supervision returns one tensor, the full resolution; the original returns a
  list of five in both modes, until its attribute ``do_ds`` is set to ``False``. In training mode it is a tuple.
- There is no ``dummy_tensor``; one in a state dict is ignored.
- ``norm_type="layer"`` normalizes over the channels as well, and works for input of any size.
- ``upkern_load_weights`` raises a ``ValueError`` for another number of classes or channels or another variant; only
  the auxiliary heads may be missing in the trained network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from . import networks
from .weights import upkern
from .weights.state_dict import DUMMY

__all__ = [
    "MedNeXt",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtUpBlock",
    "OutBlock",
    "create_mednext_v1",
    "upkern_load_weights",
]

DIMS = {"2d": 2, "3d": 3}
CHECKPOINT_STYLES: dict[str | None, bool | str] = {None: False, "outside_block": "block", "expansion": "expansion"}


class MedNeXt(networks.MedNeXt):
    """
    :py:class:`mednext_monai.networks.MedNeXt` with the original's argument names and defaults.

    Args:
        in_channels: number of image channels.
        n_channels: number of channels at full resolution.
        n_classes: number of classes, background included.
        exp_r: expansion ratio, one or nine. Defaults to 4.
        kernel_size: edge of all depthwise kernels in voxels; as in the original it overrides the two below, which
            need ``None`` here. Defaults to 7.
        enc_kernel_size: kernel size of the encoder. Defaults to ``None``.
        dec_kernel_size: kernel size of the bottleneck and the decoder. Defaults to ``None``.
        deep_supervision: whether to build the auxiliary heads. Defaults to ``False``.
        do_res: whether blocks have a residual. Defaults to ``False``.
        do_res_up_down: whether down- and up-sampling blocks have one. Defaults to ``False``.
        checkpoint_style: ``"outside_block"`` to compute blocks again in the backward pass, or ``None``; not in the
            original, ``"expansion"`` for all but the depthwise convolutions. Defaults to ``None``.
        block_counts: blocks in each of the nine stages. Defaults to two each.
        norm_type: ``"group"`` or ``"layer"``. Defaults to ``"group"``.
        dim: ``"2d"`` or ``"3d"``. Defaults to ``"3d"``.
        grn: whether blocks have global response normalization. Defaults to ``False``.

    Raises:
        ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        in_channels: int,
        n_channels: int,
        n_classes: int,
        exp_r: int | Sequence[int] = 4,
        kernel_size: int | None = 7,
        enc_kernel_size: int | None = None,
        dec_kernel_size: int | None = None,
        deep_supervision: bool = False,
        do_res: bool = False,
        do_res_up_down: bool = False,
        checkpoint_style: str | None = None,
        block_counts: Sequence[int] = (2, 2, 2, 2, 2, 2, 2, 2, 2),
        norm_type: str = "group",
        dim: str = "3d",
        grn: bool = False,
    ) -> None:
        if checkpoint_style not in CHECKPOINT_STYLES:
            raise ValueError(f"checkpoint_style must be one of {tuple(CHECKPOINT_STYLES)}, got {checkpoint_style!r}.")
        if kernel_size is not None:
            enc_kernel_size = dec_kernel_size = kernel_size
        if enc_kernel_size is None or dec_kernel_size is None:
            raise ValueError(
                "kernel_size=None needs both enc_kernel_size and dec_kernel_size, "
                f"got {enc_kernel_size} and {dec_kernel_size}."
            )
        super().__init__(
            spatial_dims=_spatial_dims(dim),
            in_channels=in_channels,
            out_channels=n_classes,
            base_channels=n_channels,
            expansion_ratio=exp_r,
            block_counts=block_counts,
            encoder_kernel_size=enc_kernel_size,
            decoder_kernel_size=dec_kernel_size,
            use_residual=do_res,
            use_residual_resampling=do_res_up_down,
            deep_supervision=deep_supervision,
            norm=norm_type,
            use_grn=grn,
            use_checkpoint=CHECKPOINT_STYLES[checkpoint_style],
        )

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], *args, **kwargs):
        """As ``torch.nn.Module.load_state_dict``, ignoring the original's ``dummy_tensor``."""
        return super().load_state_dict({k: v for k, v in state_dict.items() if k != DUMMY}, *args, **kwargs)


class MedNeXtBlock(networks.MedNeXtBlock):
    """:py:class:`mednext_monai.networks.MedNeXtBlock` with the original's argument names and defaults."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        exp_r: int = 4,
        kernel_size: int = 7,
        do_res: bool = True,
        norm_type: str = "group",
        n_groups: int | None = None,
        dim: str = "3d",
        grn: bool = False,
    ) -> None:
        super().__init__(
            _spatial_dims(dim), in_channels, out_channels, exp_r, kernel_size, do_res, norm_type, n_groups, grn
        )


class _ResamplingBlock:
    """The arguments that the two resampling blocks share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        exp_r: int = 4,
        kernel_size: int = 7,
        do_res: bool = False,
        norm_type: str = "group",
        dim: str = "3d",
        grn: bool = False,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]  # of the block that follows in the order of bases
            _spatial_dims(dim), in_channels, out_channels, exp_r, kernel_size, do_res, norm_type, use_grn=grn
        )


class MedNeXtDownBlock(_ResamplingBlock, networks.MedNeXtDownBlock):
    """:py:class:`mednext_monai.networks.MedNeXtDownBlock` with the original's argument names and defaults."""


class MedNeXtUpBlock(_ResamplingBlock, networks.MedNeXtUpBlock):
    """:py:class:`mednext_monai.networks.MedNeXtUpBlock` with the original's argument names and defaults."""


class OutBlock(networks.MedNeXtOutBlock):
    """:py:class:`mednext_monai.networks.MedNeXtOutBlock` with the original's argument names."""

    def __init__(self, in_channels: int, n_classes: int, dim: str) -> None:
        super().__init__(_spatial_dims(dim), in_channels, n_classes)


def create_mednext_v1(
    num_input_channels: int, num_classes: int, model_id: str, kernel_size: int = 3, deep_supervision: bool = False
) -> MedNeXt:
    """
    Build a published MedNeXt in 3D.

    Args:
        num_input_channels: number of image channels.
        num_classes: number of classes, background included.
        model_id: ``"S"``, ``"B"``, ``"M"`` or ``"L"``.
        kernel_size: edge of the depthwise kernels in voxels. Defaults to 3.
        deep_supervision: whether to build the auxiliary heads. Defaults to ``False``.

    Raises:
        ValueError: if there is no such model.
    """
    if model_id not in networks.VARIANTS:
        raise ValueError(f"model_id must be one of {list(networks.VARIANTS)}, got {model_id!r}.")
    variant = networks.VARIANTS[model_id]
    return MedNeXt(
        num_input_channels,
        variant.base_channels,
        num_classes,
        exp_r=variant.expansion_ratio,
        kernel_size=kernel_size,
        deep_supervision=deep_supervision,
        do_res=True,
        do_res_up_down=True,
        checkpoint_style="outside_block" if variant.use_checkpoint else None,
        block_counts=variant.block_counts,
        grn=variant.use_grn,
    )


def upkern_load_weights(network: torch.nn.Module, pretrained: torch.nn.Module) -> torch.nn.Module:
    """
    Initialize ``network`` from ``pretrained``, a trained network with other kernel sizes, and return it.

    See :py:func:`mednext_monai.weights.upkern`, which also accepts a state dict and reports what it did.
    """
    upkern(pretrained, network)
    return network


def _spatial_dims(dim: str) -> int:
    if dim not in DIMS:
        raise ValueError(f"dim must be one of {list(DIMS)}, got {dim!r}.")
    return DIMS[dim]
