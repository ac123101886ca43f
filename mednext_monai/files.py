"""Writing files whole or not at all. Imports neither torch nor monai."""

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
    Give a temporary path beside ``target`` to write to, and rename it to ``target`` when the block ends well.

    At every moment there is the whole old file or the whole new one. When the block raises, the temporary file is
    removed and the old one stays. Missing folders are made. The temporary name keeps the target's suffixes.
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
    """Write bytes by way of :py:func:`atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
