"""What ``mednext tune`` has measured on this computer: a file from which the backend ``"auto"`` learns what it may use.

It is ``tuned.json`` in the folder that the environment variable ``MEDNEXT_CACHE`` names; by default ``mednext`` in
``XDG_CACHE_HOME`` or ``~/.cache``. An entry holds for one GPU, its driver, the versions of torch, triton and this
package with these very kernels, one network, one shape and type of its input, and one mode. Only what was exact and
faster has an entry.

Importing this module does not load Triton.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .... import __version__
from ....files import read_json, write_atomically

__all__ = ["Key", "cache_file", "environment", "is_interpreting", "keys_of", "trial", "update"]

FORMAT = 1
DRIVER = Path("/proc/driver/nvidia/version")  # Linux
logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """For what the kernels were measured."""

    structure: tuple  # of the network, see ``measured.structure``
    shape: tuple[int, ...]  # of the input, (B, C, D, H, W)
    types: tuple[str, str, str]  # of the parameters, of the input, of autocast ("" without)
    training: bool  # forward and backward in training mode, or forward alone in evaluation mode
    compiled: bool  # by torch.compile


def cache_file() -> Path:
    """Return the path of the file, which need not exist."""
    folder = os.environ.get("MEDNEXT_CACHE")
    if folder:
        return Path(folder, "tuned.json")
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mednext", "tuned.json")


def is_interpreting() -> bool:
    """Return whether Triton's interpreter runs the kernels, on CPU tensors, as in tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


@functools.cache
def environment(device: torch.device) -> dict[str, str]:
    """Return what an entry depends on beside its key: the GPU, its driver, and the versions of all that compute."""
    try:
        triton = version("triton")
    except PackageNotFoundError:  # such as pytorch-triton-rocm, whose version is that of torch
        triton = ""
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else f"interpreter, {platform.machine()}",
        "driver": _driver(device),
        "torch": torch.__version__,
        "triton": triton,
        "mednext_monai": __version__,
        "kernels": _digest(),
    }


def _driver(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    if DRIVER.is_file() and (found := re.search(r"Module\s+(\S+)", DRIVER.read_text())):
        return found[1]
    interface: Any = torch._C  # names it in builds for GPUs only
    return str(torch.version.hip or interface._cuda_getDriverVersion())  # of the interface, if nothing else is known


def _digest() -> str:
    """Return a hash of the sources of the kernels and of what selects them."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# --- reading ---------------------------------------------------------------------------------------------------------

_on_trial: frozenset[Key] = frozenset()


def keys_of(device: torch.device) -> frozenset[Key]:
    """
    Return for what the kernels are exact and faster on a device. The file is read once per process and device.

    A file that is damaged counts as absent, and a warning says so.
    """
    return _on_trial or _read_keys(device, cache_file())


@contextmanager
def trial(key: Key) -> Iterator[None]:
    """Let the backend ``"auto"`` use the kernels within a ``with`` block for this and nothing else, to measure them."""
    global _on_trial
    _on_trial = frozenset({key})
    try:
        yield
    finally:
        _on_trial = frozenset()


@functools.cache
def _read_keys(device: torch.device, file: Path) -> frozenset[Key]:
    entries = _read(file)
    return frozenset(_key(entry) for entry in entries if entry["environment"] == environment(device))


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a file; none if it is absent or, with a warning, if it is damaged."""
    try:
        content = read_json(file)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} is not {FORMAT}")
        entries = list(content["entries"])
        for entry in entries:
            _key(entry)
            if not isinstance(entry["environment"], dict):
                raise ValueError("an environment is no object")
        return entries
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        logger.warning(
            f"{file} is damaged and ignored, so that no Triton kernel is used: {type(error).__name__}: {reason} "
            "The command `mednext tune` writes it anew."
        )
        return []


def _key(entry: Mapping[str, Any]) -> Key:
    """Return the key of an entry of the file."""
    stored = entry["key"]
    shape, types, modes = tuple(stored["shape"]), tuple(stored["types"]), (stored["training"], stored["compiled"])
    if len(shape) != 5 or not all(type(size) is int for size in shape):
        raise ValueError(f"shape {shape} is none of (B, C, D, H, W)")
    if len(types) != 3 or not all(type(name) is str for name in types) or not all(type(mode) is bool for mode in modes):
        raise ValueError(f"types {types} or modes {modes} are none")
    key = Key(_tuples(stored["structure"]), shape, types, *modes)  # type: ignore[arg-type]
    hash(key)  # raises for an object in it
    return key


def _tuples(item: Any) -> Any:
    return tuple(_tuples(value) for value in item) if isinstance(item, list) else item


# --- writing ---------------------------------------------------------------------------------------------------------


def update(
    measured: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]], found: Mapping[str, str]
) -> Path:
    """
    Replace what the file says about keys in an environment; other entries stay.

    Args:
        measured: the keys that were measured, each a dictionary of the fields of a :py:class:`Key`.
        chosen: the entries of those that are exact and faster: ``key`` and what else is known.
        found: the environment, see :py:func:`environment`.

    Returns:
        the file, which is written atomically; of two commands at the same time the last one's remains.

    Raises:
        OSError: if it cannot be written.
    """
    file, replaced = cache_file(), {_key({"key": key}) for key in measured}
    kept = [entry for entry in _read(file) if entry["environment"] != found or _key(entry) not in replaced]
    content = {"format": FORMAT, "entries": [*kept, *({"environment": dict(found), **entry} for entry in chosen)]}
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
    _read_keys.cache_clear()
    return file
