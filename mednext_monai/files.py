"""Writing files atomically, reading JSON, and hashes of files. Imports neither torch nor MONAI."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_path",
    "extend",
    "hash_file",
    "json_object",
    "nameless_file",
    "naming_a_full_disk",
    "read_json",
    "sha256",
    "write_atomically",
]

FULL = 2**16  # bytes free at most on a disk that is full; libraries report this by errors of their own
DEEPEST = 100  # levels of a JSON file, since functions that walk through it call themselves at each
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NO_RESERVATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}  # file systems that reserve no space
ZEROS = bytes(2**20)


@contextmanager
def atomic_path(target: str | PathLike[str], previous: str | PathLike[str] | None = None) -> Iterator[Path]:
    """
    Yield a temporary path in the folder of ``target``, and rename it to ``target`` if the block succeeds.

    At any time, ``target`` is either the complete old file or the complete new one. If the block raises, the temporary
    file is removed and the old file is kept. Missing folders are created. The temporary name has the same suffixes and
    is of this call only, so that several computers can write the same file in a shared folder; the last one stays.

    Args:
        target: the file to write.
        previous: new name of the old file, on the same file system. If the process is killed between the two renames,
            the old file has this name and ``target`` does not exist. Defaults to ``None``: the old file is deleted.

    Raises:
        FileExistsError: if ``target`` exists and is not a regular file, such as a device, a socket or a folder.
        OSError: if the disk is full, naming the file and what is written and free, whatever error the block raised.
    """
    target = Path(target)
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} exists and is not a regular file; it is not replaced.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex[:12]}.{target.name}")
    try:
        with naming_a_full_disk(target, temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if previous is not None and target.exists():
                os.replace(target, previous)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_a_full_disk(target: str | PathLike[str], temporary: Path) -> Iterator[None]:
    """
    If the block raises because the disk is full, whatever error it raises, raise one that names the file instead.

    Args:
        target: the file or folder that is written.
        temporary: the file or folder in which it is written.

    Raises:
        OSError: if the disk is full, or a quota is reached, with ``target`` and what is written and free.
    """
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(temporary.parent).free
        if getattr(error, "errno", None) in NO_SPACE or free < FULL:
            message = f"the disk is full: {_size(temporary)} bytes are written, more are needed, {free} are free"
            raise OSError(errno.ENOSPC, message, str(target)) from error
        raise


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


def write_atomically(target: str | PathLike[str], content: bytes) -> None:
    """Write bytes to a file with :py:func:`atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def nameless_file(folder: str | PathLike[str]) -> IO[bytes]:
    """
    Return a new file for temporary data, open for reading and writing.

    It has no name where the system allows it, and is removed when it is closed or the process ends, also if it is
    killed. The folder is created if needed.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def extend(file: IO[bytes], size: int, folder: str | PathLike[str]) -> None:
    """
    Append zeros to a file and reserve their space on the disk.

    Without a reservation, a process that writes to a memory-mapped file on a full disk is ended by the system.

    Args:
        file: the file.
        size: number of bytes.
        folder: the folder of the file, for the message.

    Raises:
        OSError: if the disk is full, naming the folder, what is needed and what is free.
    """
    start = file.seek(0, os.SEEK_END)
    try:
        try:
            os.posix_fallocate(file.fileno(), start, size)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) not in {None, *NO_RESERVATION}:
                raise
            for done in range(0, size, len(ZEROS)):
                file.write(ZEROS[: size - done])
            file.flush()
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free = shutil.disk_usage(folder).free
        message = (
            f"the disk is full: {start} bytes of temporary data are written, {size} more are needed, {free} are free"
        )
        raise OSError(errno.ENOSPC, message, str(folder)) from error


def read_json(path: str | PathLike[str]) -> Any:
    """
    Return the content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is not valid, or is nested too deeply. The message names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if _depth(content) > DEEPEST:
            raise RecursionError(f"more than {DEEPEST} levels")
        return content
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON in UTF-8: {error}") from error


def json_object(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is none, or no such file."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def hash_file(path: str | PathLike[str]) -> tuple[int, str]:
    """
    Return the size of a file in bytes and a hash of them, 32 hexadecimal digits. The file is read in parts.

    ``hashlib.file_digest`` needs Python 3.11.

    Raises:
        OSError: if the file cannot be read.
    """
    return _hash(path, hashlib.blake2b(digest_size=16))


def sha256(path: str | PathLike[str]) -> str:
    """
    Return the SHA-256 of a file, by which others can check it, 64 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.
    """
    return _hash(path, hashlib.sha256())[1]


def _hash(path: str | PathLike[str], digest: Any) -> tuple[int, str]:
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return file.tell(), digest.hexdigest()


def _depth(content: Any) -> int:
    """Return the number of lists and objects around the innermost value."""
    depth, level = -1, [content]
    while level:
        depth += 1
        level = [
            item
            for holder in level
            if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
    return depth
