"""Reading a network's tensors from any of the files in which training code leaves them, and writing them safely.

Source of the layouts: nnU-Net v1 as used by MIC-DKFZ/MedNeXt (``state_dict`` among training state that holds numpy
scalars, and a ``dummy_tensor`` in every network), MONAI and ignite (``model`` or ``network`` or ``net``),
``torch.nn.parallel`` (names that begin with ``module.``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import atomic_path

__all__ = ["find_state_dict", "plain_names", "read_checkpoint", "read_state_dict", "write_state_dict"]

ENTRIES = ("model", "network", "net", "state_dict")  # under one of which a checkpoint holds its tensors
DUMMY = "dummy_tensor"  # the authors' networks hold one for their checkpointing; it has no function
PREFIX = "module."  # of DataParallel and DistributedDataParallel
PLACEHOLDER = b"cThis bundle"  # begins the text that stands in for the weights of a bundle that has none yet


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a network from a checkpoint, without running anything that the file holds.

    Read are a plain state dict, a dictionary that holds one under ``model``, ``network``, ``net`` or ``state_dict``
    (MONAI, ignite, nnU-Net v1's ``.model``), each with or without the ``module.`` prefix of parallel training.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU by name, without ``module.`` and without ``dummy_tensor``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is truncated, no checkpoint, holds other Python objects than tensors, numbers and
            containers, or is the placeholder of a bundle without weights. It names the file.
    """
    return plain_names(find_state_dict(read_checkpoint(path), path))


def read_checkpoint(path: str | Path) -> Any:
    """
    Read everything that a checkpoint holds, tensors on the CPU; numpy scalars become Python numbers.

    Raises:
        FileNotFoundError, ValueError: as :py:func:`read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file.")
    with open(path, "rb") as file:
        if file.read(len(PLACEHOLDER)) == PLACEHOLDER:
            raise ValueError(
                f"{path}: this bundle has no weights yet, only a placeholder in their place; train the bundle, or "
                "convert or copy a checkpoint to that path."
            )
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: EOFError, KeyError, OSError, RuntimeError, ...
        raise ValueError(f"{path} is not read: {_reason(error)}") from error


def find_state_dict(checkpoint: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """
    Return the state dict that a checkpoint is or holds, names unchanged.

    Args:
        checkpoint: what :py:func:`read_checkpoint` returned.
        path: the file, for the message.

    Raises:
        ValueError: when there is none, saying what was found.
    """
    if _is_state_dict(checkpoint):
        return dict(checkpoint)
    if isinstance(checkpoint, Mapping):
        for entry in ENTRIES:
            if _is_state_dict(checkpoint.get(entry)):
                return dict(checkpoint[entry])
        found = f"a dictionary with {len(checkpoint)} entries: {[str(key) for key in checkpoint][:10]}"
    else:
        found = f"an object of type {type(checkpoint).__name__}"
    raise ValueError(f"{path} holds no state dict: expected tensors by name, alone or under {ENTRIES}; found {found}.")


def plain_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict without the ``module.`` prefix of parallel training and without ``dummy_tensor``."""
    if all(name.startswith(PREFIX) for name in state_dict):
        state_dict = {name[len(PREFIX) :]: tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in state_dict.items() if name != DUMMY}


def write_state_dict(state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write a state dict by way of a temporary file: a whole file is left, or the old one."""
    with atomic_path(path) as temporary:
        torch.save(dict(state_dict), temporary)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def _reason(error: Exception) -> str:
    """Say why ``torch.load`` failed, without its advice to load the file unsafely."""
    named = re.search(r"GLOBAL (\S+\.[^\s.]+)\s", str(error))  # a name that ends in a dot is cut off
    if named:
        return (
            f"it holds the Python object {named[1]}, which could run code; allowed are tensors, numbers, "
            "strings, lists and dictionaries. Nothing in it was run."
        )
    detail = (str(error).splitlines() or [""])[0].split(". ")[0][:200]
    return (
        "it is truncated, corrupt or no PyTorch checkpoint; expected is a file that torch.save wrote "
        f"({type(error).__name__}{': ' + detail if detail else ''})."
    )


def scalar(dtype: np.dtype, value: bytes) -> float | int | bool:
    """Stand in for numpy's function of this name, with which numpy scalars are pickled; numbers only."""
    if dtype.kind not in "biuf":
        raise ValueError(f"a numpy scalar of type {dtype} is no number.")
    return np.frombuffer(value, dtype=dtype, count=1)[0].item()


def _numpy_scalar_types() -> list:
    """What unpickling a numpy scalar calls, under the names that numpy 1 and numpy 2 write."""

    def stand_in(module: str):
        def function(dtype: np.dtype, value: bytes) -> float | int | bool:
            return scalar(dtype, value)

        function.__module__, function.__name__, function.__qualname__ = module, "scalar", "scalar"
        return function

    dtypes = {type(np.dtype(code)) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
    return [stand_in("numpy.core.multiarray"), stand_in("numpy._core.multiarray"), np.dtype, *dtypes]
