"""Inference and training on a CPU in less time and memory, registered under the backend ``"auto"``.

- ``network``: the whole network in evaluation mode.
- ``block``: one block in training.
- ``autograd``: its autograd function.
- ``depthwise``, ``pointwise``, ``products``: the convolutions and matrix products that both are made of.
- ``precision``: whether they may be in bfloat16, and whether that is faster.
- ``common``: when both may be used, and what they read from a block.

The memory that both work in is ``mednext_monai.memory``.
"""

from ... import dispatch
from . import block, network
from .precision import bfloat16_pays

__all__ = ["bfloat16_pays"]

dispatch.register("auto", network)
dispatch.register("auto", block)
