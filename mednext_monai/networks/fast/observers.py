"""What looks at or changes a network's operations, so that only the plain modules give what it expects."""

from __future__ import annotations

import torch
import torch.nn as nn

__all__ = ["HOOKS", "is_observed"]

HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")  # of a module, with a _ before


def is_observed() -> bool:
    """Return whether autocast, a function transform, forward-mode gradients, a mode or a global hook is active."""
    return bool(
        torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or any(getattr(nn.modules.module, f"_global_{hooks}") for hooks in HOOKS)
    )
