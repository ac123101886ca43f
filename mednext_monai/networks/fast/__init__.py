"""Faster computations of the function that ``blocks`` and ``mednext`` define.

Here belongs what computes the same numbers from the same parameters, to rounding, in less time or memory, and holds no
parameters of its own. ``MedNeXt.forward`` chooses it where it is known to apply; see ``networks.backend``.

- ``inference``: the whole network in evaluation mode on the CPU, and when it may be used.
- ``depthwise``: its depthwise convolutions.
- ``pointwise``: its norm, expansion, GELU and compression.
- ``workspace``: the memory it works in.
"""
