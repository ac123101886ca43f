"""Reading the tensors of a network from any file in which training code stores them, and writing checkpoints safely.

Sources of the layouts: nnU-Net v1 as used by MIC-DKFZ/MedNeXt (``state_dict`` among training state that holds NumPy
scalars, and a ``dummy_tensor`` in every network), MONAI and ignite (``model``, ``network`` or ``net``), Lightning
(``state_dict`` with names that begin with the module's attribute), nnU-Net v2 (``network_weights``),
``torch.nn.parallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..files import atomic_path

__all__ = [
    "find_state_dict",
    "is_original",
    "is_placeholder",
    "plain_names",
    "read_checkpoint",
    "read_state_dict",
    "unwrap_parallel",
    "write_checkpoint",
]

ENTRIES = (
    "model",
    "network",
    "net",
    "state_dict",
    "model_state_dict",
    "ema",
    "ema_state_dict",
    "module",
    "network_weights",
)  # by priority
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # that wrappers add to all names
DUMMY = "dummy_tensor"  # part of every network of the authors' code, for its checkpointing; it has no function
PLACEHOLDER_START = b"cThis bundle"  # of the file in a bundle without weights, see mednext_monai.bundles.library


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a network from a checkpoint, without executing anything in it.

    The file may hold a state dict, or a dictionary with one under ``model``, ``network``, ``net``, ``state_dict``,
    ``model_state_dict``, ``ema``, ``ema_state_dict``, ``module`` or ``network_weights``, at any depth. Prefixes that
    all tensors share (``module.``, ``_orig_mod.``, ``model.``, ``net.``, ``network.``, in any combination) are removed
    from their names.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU by name, without the prefixes and without ``dummy_tensor``.

    Raises:
        FileNotFoundError: if there is no such file, listing the checkpoints beside it.
        ValueError: naming the file, if it is truncated, not a checkpoint, holds Python objects other than tensors,
            numbers and containers, or is the placeholder of a bundle without weights.
    """
    return plain_names(find_state_dict(read_checkpoint(path), path))


def read_checkpoint(path: str | Path) -> Any:
    """
    Read everything in a checkpoint, with tensors on the CPU and NumPy scalars as Python numbers.

    Raises:
        FileNotFoundError, ValueError: as :py:func:`read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        others = sorted(str(file) for file in path.parent.glob("*.pt"))
        raise FileNotFoundError(
            f"the checkpoint {path} does not exist or is not a file; its folder contains {others or 'no checkpoints'}."
        )
    if is_placeholder(path):
        raise ValueError(
            f"{path}: this bundle has no weights yet, only a placeholder in their place; train the bundle, or "
            "convert or copy a checkpoint to that path."
        )
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: EOFError, KeyError, OSError, RuntimeError, ...
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from error


def find_state_dict(checkpoint: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """
    Return the state dict that a checkpoint is or holds, with unchanged names.

    Args:
        checkpoint: what :py:func:`read_checkpoint` returned.
        path: the file, for the message.

    Raises:
        ValueError: if there is none, listing what was found.
    """
    state_dict = _search(checkpoint)
    if state_dict is not None:
        return state_dict
    if isinstance(checkpoint, Mapping):
        found = f"a dictionary with {len(checkpoint)} entries: {[str(key) for key in checkpoint][:10]}"
    else:
        found = f"an object of type {type(checkpoint).__name__}"
    raise ValueError(
        f"{path} holds no state dict: expected tensors by name, at the top or under one of {ENTRIES}; found {found}."
    )


def plain_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict without the prefixes that all names share and without ``dummy_tensor``."""
    plain = {name: tensor for name, tensor in state_dict.items() if not _is_dummy(name)}
    while shared := next((prefix for prefix in PREFIXES if plain and all(n.startswith(prefix) for n in plain)), None):
        plain = {name.removeprefix(shared): tensor for name, tensor in plain.items()}
    return plain


def is_placeholder(path: str | Path) -> bool:
    """Return whether a file is the placeholder of a bundle without weights."""
    with open(path, "rb") as file:
        return file.read(len(PLACEHOLDER_START)) == PLACEHOLDER_START


def is_original(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a state dict, with unchanged names, was written by the authors' code."""
    return any(map(_is_dummy, state_dict))


def unwrap_parallel(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside DataParallel or DistributedDataParallel, or the network itself."""
    return network.module if isinstance(network, (DataParallel, DistributedDataParallel)) else network


def write_checkpoint(content: Any, path: str | Path, previous: str | Path | None = None) -> None:
    """
    Write a file with ``torch.save``; at every moment the complete new file or the complete old one exists.

    Tensors are written as tensors on the CPU: ``torch.load`` would otherwise look for the GPU that they were on.

    Args:
        content: what is written.
        path: the file.
        previous: new name of the file that is replaced. Defaults to ``None``: it is deleted.
    """
    with atomic_path(path, previous) as temporary:
        torch.save(_on_cpu(content), temporary)


def _on_cpu(item: Any) -> Any:
    """Return an object with its tensors on the CPU; mappings and sequences in it are copied, with their attributes."""
    if isinstance(item, torch.Tensor):
        return item.cpu()
    if isinstance(item, MutableMapping):
        moved = copy.copy(item)
        for key, value in item.items():
            moved[key] = _on_cpu(value)
        return moved
    return type(item)(map(_on_cpu, item)) if type(item) in (list, tuple) else item


def _search(item: Any) -> dict[str, torch.Tensor] | None:
    if not isinstance(item, Mapping) or not item:
        return None
    if all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in item.items()):
        return item  # type: ignore[return-value]  # not a copy, which would lack its _metadata
    return next(filter(None, (_search(item.get(entry)) for entry in ENTRIES)), None)


def _is_dummy(name: str) -> bool:
    return name.split(".")[-1] == DUMMY


def _reason(error: Exception) -> str:
    """Explain why ``torch.load`` failed, without its advice to load the file unsafely."""
    named = re.search(r"GLOBAL (\S+\.[^\s.]+)\s", str(error))  # a name that ends in a dot is cut off
    if named:
        return (
            f"it holds the Python object {named[1]}, which could run code; allowed are tensors, numbers, "
            "strings, lists and dictionaries. Nothing in it was run."
        )
    detail = (str(error).splitlines() or [""])[0].split(". ")[0][:200]
    return (
        "it is truncated, corrupt or not a PyTorch checkpoint; expected a file written by torch.save "
        f"({type(error).__name__}{': ' + detail if detail else ''})."
    )


def _scalar(dtype: np.dtype, value: bytes) -> float | int | bool:
    """Replace the NumPy function with which scalars are unpickled, for numbers only."""
    if dtype.kind not in "biuf":
        raise ValueError(f"a NumPy scalar of type {dtype} is not a number.")
    return np.frombuffer(value, dtype=dtype, count=1)[0].item()


def _numpy_scalar_types() -> list[Callable | tuple[Callable, str]]:
    """Return what unpickling a NumPy scalar calls, under the names that NumPy 1 and NumPy 2 write."""

    def stand_in(module: str) -> Callable:
        def scalar(dtype: np.dtype, value: bytes) -> float | int | bool:
            return _scalar(dtype, value)

        scalar.__module__, scalar.__qualname__ = module, "scalar"
        return scalar

    dtypes = {type(np.dtype(code)) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
    return [stand_in("numpy.core.multiarray"), stand_in("numpy._core.multiarray"), np.dtype, *dtypes]
