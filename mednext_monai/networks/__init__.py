"""MedNeXt networks and the blocks they are made of: plain ``torch.nn.Module`` classes with MONAI-style arguments.

- ``norms``, ``blocks``, ``mednext``, ``variants``: the readable definition.
- ``backend``: which implementation computes it.
- ``fast``: the same function in less time and memory on a CPU; ``triton``: kernels for a GPU, on demand only.
"""

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
