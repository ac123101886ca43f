"""The memory the fast path works in, kept from call to call.

Fresh memory is expensive: the operating system hands it out page by page and zeroes it, which takes longer than the
arithmetic done on it. All networks of a process share one workspace; it is freed with the last network that used it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn

__all__ = ["Workspace", "borrowed_workspace", "release_workspace"]


class Workspace:
    """Named float32 buffers on the CPU, each grown to the largest size asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return the buffer ``name`` as a contiguous tensor of ``shape`` with arbitrary values."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)  # freed before the larger one is made
            with torch.inference_mode(False):  # else it could not be written to outside inference mode
                self._buffers[name] = torch.empty(size, dtype=torch.float32, device="cpu")
        return self._buffers[name][:size].view(shape)


_users: weakref.WeakKeyDictionary[nn.Module, Workspace] = weakref.WeakKeyDictionary()
_users_lock = threading.Lock()


@contextmanager
def borrowed_workspace(network: nn.Module) -> Iterator[Workspace]:
    """Lend the process's workspace to one call of ``network``; a temporary one where another thread has it."""
    with _users_lock:
        workspace = next(iter(_users.values()), None) or Workspace()
        _users[network] = workspace
    if not workspace.lock.acquire(blocking=False):
        yield Workspace()
        return
    try:
        yield workspace
    finally:
        workspace.lock.release()


def release_workspace(network: nn.Module) -> None:
    """Say that ``network`` needs no workspace for now; the memory is freed when no network does."""
    with _users_lock:
        _users.pop(network, None)
