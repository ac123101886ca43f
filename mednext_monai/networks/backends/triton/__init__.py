"""Triton kernels for a GPU and what joins them to PyTorch.

Here belong kernels with the function that launches each (``depthwise``, ``statistics``, ``pointwise``; ``common`` is
what they share), the same in torch operations (``eager``), the operators made of them (``operators``), how and when a
MedNeXt block uses these (``forward``, ``block``), and for which networks they were measured (``table``, ``measured``).
The formulas are in the modules' docstrings.

The kernels are tested with Triton's interpreter on a CPU and compiled for NVIDIA GPUs, but have not run on one yet. The
backend ``"auto"`` selects them only where ``mednext tune`` has found them exact and faster on the GPU in use. Triton
comes with PyTorch's CUDA builds and is loaded when a kernel is first used.
"""

from ... import dispatch
from . import block, measured

dispatch.register("triton", block)
dispatch.register("auto", measured)
