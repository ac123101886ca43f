"""MedNeXt networks and the blocks they are made of: plain ``torch.nn.Module`` classes with MONAI-style arguments."""

from .blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from .mednext import MedNeXt
from .variants import VARIANTS, Variant, create_mednext

__all__ = [
    "MedNeXt",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtOutBlock",
    "MedNeXtUpBlock",
    "VARIANTS",
    "Variant",
    "create_mednext",
]
