"""MedNeXt networks and the blocks they are made of: plain ``torch.nn.Module`` classes with MONAI-style arguments.

- ``blocks``: the four blocks and their norms.
- ``mednext``: the network, the table of its variants, and the function that builds one.
- ``ensemble``: several networks as one.
- ``compiler``: ``torch.compile`` of any of them.
- ``dispatch``: which implementation computes them.
- ``backends``: optimized implementations of the same function, ``cpu`` and ``triton``.
"""

from . import backends  # noqa: F401 - registers the implementations
from .backends.cpu import bfloat16_pays
from .blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from .compiler import Compiler
from .dispatch import BACKENDS, get_backend, set_backend, using_backend
from .ensemble import Ensemble, ensemble
from .mednext import KERNEL_SIZES, SHAPE_FACTOR, STAGES, VARIANTS, MedNeXt, Variant, create_mednext

__all__ = [
    "BACKENDS",
    "Compiler",
    "Ensemble",
    "KERNEL_SIZES",
    "MedNeXt",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtOutBlock",
    "MedNeXtUpBlock",
    "SHAPE_FACTOR",
    "STAGES",
    "VARIANTS",
    "Variant",
    "bfloat16_pays",
    "create_mednext",
    "ensemble",
    "get_backend",
    "set_backend",
    "using_backend",
]
