"""The published variants S, B, M and L: the one table of their numbers, and the function that builds one.

Source: Roy et al., MICCAI 2023, table 1; Apache-2.0 code of the authors for the checkpointing of M and L.
"""

from __future__ import annotations

from typing import NamedTuple

from .mednext import MedNeXt

__all__ = ["VARIANTS", "Variant", "create_mednext"]


class Variant(NamedTuple):
    """What distinguishes one variant: arguments of :py:class:`MedNeXt` of the same names."""

    expansion_ratio: tuple[int, ...]
    block_counts: tuple[int, ...]
    use_checkpoint: bool  # in training, as published


VARIANTS = {
    "S": Variant((2, 2, 2, 2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2, 2, 2, 2), False),
    "B": Variant((2, 3, 4, 4, 4, 4, 4, 3, 2), (2, 2, 2, 2, 2, 2, 2, 2, 2), False),
    "M": Variant((2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3), True),
    "L": Variant((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3), True),
}


def create_mednext(
    variant: str,
    kernel_size: int = 3,
    spatial_dims: int = 3,
    in_channels: int = 1,
    out_channels: int = 2,
    deep_supervision: bool = False,
    use_checkpoint: bool | None = None,
    **kwargs,
) -> MedNeXt:
    """
    Build a published MedNeXt.

    Args:
        variant: ``"S"``, ``"B"``, ``"M"`` or ``"L"``.
        kernel_size: edge of the depthwise kernels in voxels; 3 and 5 are published. Defaults to 3.
        spatial_dims: number of spatial dimensions, 2 or 3. Defaults to 3.
        in_channels: number of image channels. Defaults to 1.
        out_channels: number of classes, background included. Defaults to 2.
        deep_supervision: whether to build the auxiliary heads. Defaults to ``False``.
        use_checkpoint: whether to recompute blocks in the backward pass to save memory. Defaults to ``None``, as
            published: for M and L.
        kwargs: further arguments of :py:class:`MedNeXt`; they win over the variant's.

    Raises:
        ValueError: when the variant is not one of the four.
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
