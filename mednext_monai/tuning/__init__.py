"""``mednext tune``: which networks the Triton kernels compute exactly and faster on the GPU of this computer.

- ``cases``: what is measured for a bundle: a network, a shape, a type, training or inference, compiled or not.
- ``measure``: the check and the times of one case, the main module of a process of its own.
- ``errors``: how far two results are from a more accurate one, and what counts as exact.
- ``run``: the command: a process per case, what it costs if one fails, and the file that ``backends.triton`` reads.

Importing this package imports neither torch nor MONAI.
"""
