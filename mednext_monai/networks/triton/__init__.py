"""Triton kernels for a GPU and what joins them to PyTorch; used only with the backend ``"triton"``.

Here belong: kernels with the function that launches each (``depthwise``, ``statistics``, ``pointwise``; ``common`` is
what they share), the same in torch operations (``eager``), the operators made of them (``operators``), and the way a
MedNeXt block uses these (``block``). The formulas are in the modules' docstrings.

The kernels are tested with Triton's interpreter on a CPU and compiled for NVIDIA GPUs, but have not run on one yet: no
figure of speed exists, and ``"auto"`` never chooses them. Triton comes with PyTorch's CUDA builds.
"""

from .block import block_forward, takes
from .operators import depthwise_conv3d, norm_mlp

__all__ = ["block_forward", "depthwise_conv3d", "norm_mlp", "takes"]
