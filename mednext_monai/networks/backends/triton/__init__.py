"""Triton kernels for a GPU and what joins them to PyTorch; used only with the backend ``"triton"``.

Here belong kernels with the function that launches each (``depthwise``, ``statistics``, ``pointwise``; ``common`` is
what they share), the same in torch operations (``eager``), the operators made of them (``operators``), and how and
when a MedNeXt block uses these (``forward``, ``block``). The formulas are in the modules' docstrings.

The kernels are tested with Triton's interpreter on a CPU and compiled for NVIDIA GPUs, but have not run on one yet:
there are no measurements, and ``"auto"`` never selects them. Triton comes with PyTorch's CUDA builds and is loaded
when the backend is first used.
"""

from ... import dispatch
from . import block

dispatch.register("triton", block)
