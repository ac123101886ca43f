"""Where the preprocessed volume of a case is kept, and when it is no longer valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

__all__ = ["cache_folder", "hash_case"]


def cache_folder(cache_dir: str | None, **settings: Any) -> str | None:
    """
    Return the sub-folder of ``cache_dir`` for volumes preprocessed with these settings; ``None`` for no cache.

    :py:class:`monai.data.PersistentDataset` does not see its transforms' arguments: after a change of spacing it
    would go on serving the old volumes.
    """
    if cache_dir is None:
        return None
    name = hashlib.md5(json.dumps(settings, sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:12]
    return str(Path(cache_dir, name))


def hash_case(case: Mapping) -> bytes:
    """
    Return a name for a case's cached volume that changes when one of its files does.

    For the ``hash_func`` of :py:class:`monai.data.PersistentDataset`, whose default sees the paths alone and would
    go on serving the volume of a file that has been replaced.
    """
    parts = []
    for key in ("image", "label"):
        for path in ensure_tuple(case.get(key, ())):
            stat = Path(path).stat()
            parts.append((key, str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns))
    return hashlib.md5(json.dumps(parts).encode(), usedforsecurity=False).hexdigest().encode()
