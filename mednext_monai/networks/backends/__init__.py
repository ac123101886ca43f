"""Optimized implementations of what ``blocks`` and ``mednext`` define.

Here belongs what computes the same numbers from the same parameters, to rounding error, in less time or memory, and
holds no parameters of its own. Each package registers with ``dispatch``: ``cpu`` under ``"auto"``, ``triton`` under
``"triton"``, and under ``"auto"`` for what was measured.
"""

from . import cpu, triton

__all__ = ["cpu", "triton"]
