"""Faster computations of the function that ``blocks`` and ``mednext`` define.

Here belongs what computes the same numbers from the same parameters, to rounding, in less time or memory, and holds no
parameters of its own. ``MedNeXt`` and the blocks choose it where it is known to apply; see ``networks.backend``.

Inference on the CPU:

- ``inference``: the whole network in evaluation mode, and when it may be used.
- ``depthwise``: its depthwise convolutions.
- ``pointwise``: its norm, expansion, GELU and compression.
- ``workspace``: the memory it works in.

Training on the CPU:

- ``training``: a block in training, and when it may be used.
- ``autograd``: its function and gradients.
- ``depthwise_training``: its depthwise convolutions and their gradients.
- ``memory``: the memory it works in.

Both:

- ``observers``: what must see the plain modules.
- ``structure``: whether the modules are the unaltered ones.
"""
