"""MedNeXt networks and the blocks they are made of: plain ``torch.nn.Module`` classes with MONAI-style arguments."""

from .backend import BACKENDS, get_backend, set_backend, using_backend
from .blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from .mednext import MedNeXt
from .variants import VARIANTS, Variant, create_mednext

__all__ = [
    "BACKENDS",
    "MedNeXt",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtOutBlock",
    "MedNeXtUpBlock",
    "VARIANTS",
    "Variant",
    "create_mednext",
    "get_backend",
    "set_backend",
    "using_backend",
]
