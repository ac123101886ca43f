"""Writing files atomically. Imports neither torch nor MONAI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

__all__ = ["atomic_path", "write_atomically"]


@contextmanager
def atomic_path(target: str | PathLike[str]) -> Iterator[Path]:
    """
    Yield a temporary path in the folder of ``target``, and rename it to ``target`` if the block succeeds.

    At any time, ``target`` is either the complete old file or the complete new one. If the block raises, the temporary
    file is removed and the old file is kept. Missing folders are created. The temporary name has the same suffixes.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: str | PathLike[str], content: bytes) -> None:
    """Write bytes to a file with :py:func:`atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
