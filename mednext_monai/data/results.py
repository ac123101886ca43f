"""Which cases are finished: their files are there, and were made from the same images with the same settings.

A segmentation holds a digest in its NIfTI header, or in a text of a picture: 24 hexadecimal digits for the settings of
the run, a hyphen, and 24 for the bytes of the image files. The content decides, not the time or name of a file: an
image that is replaced, other weights under the same name or another overlap make a case unfinished, a copied or moved
folder does not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import hash_file
from .checks import check_outputs
from .io import read_digest, read_stored, result_ending
from .store import image_content

__all__ = ["VERSION", "Output", "Results", "outputs_in"]

VERSION = 1  # increase it if the same settings give other results: all cases are then segmented again
DIGEST_SIZE = 12  # bytes of each of the two parts
CHECKED = (None, ".npz")  # endings of the files that `check_outputs` recognizes as those of this package
THREADS = 4  # that read images which may be finished
# Attributes of an inferer on which the result does not depend.
WITHOUT_EFFECT = {"sw_batch_size", "sw_device", "device", "progress", "cpu_thresh", "buffer_steps", "buffer_dim"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """
    A file that a run writes for each case: ``<folder>/<id><ending>``.

    Args:
        folder: folder of the files.
        ending: what follows the id. Defaults to ``None``: a segmentation, in the format of
            :py:func:`~mednext_monai.data.io.result_ending`, which holds the digest.
        needs_foreground: whether there is no such file for a case without any voxel of a class. Defaults to ``False``.
    """

    folder: str
    ending: str | None = None
    needs_foreground: bool = False

    def path(self, case: Mapping) -> Path:
        """Return the file of a case."""
        ending = result_ending(case["image"]) if self.ending is None else self.ending
        return Path(self.folder, f"{case['id']}{ending}")


def outputs_in(folder: str, subfolders: Iterable[str]) -> list[Output]:
    """Return the segmentations in each of several folders in a folder."""
    return [Output(f"{folder}/{name}") for name in subfolders]


class Results:
    """
    The files that a run writes, and what they depend on.

    Args:
        outputs: the files of a case; lists among them are flattened. The first one is a segmentation, written
            after those that are none, whose digest stands for theirs, too.
        settings: what results depend on beside the images: numbers, texts, lists, dictionaries, and objects, whose
            public attributes count.
        files: files whose content matters, such as checkpoints; lists among them are flattened, ``None`` is left out.
            They are read when a digest is first needed.
    """

    def __init__(self, outputs: Sequence[Any], settings: Mapping[str, Any], files: Sequence[Any] = ()) -> None:
        self.outputs: list[Output] = _flat(outputs)
        self.settings = settings
        self.files: list[str | PathLike] = [file for file in _flat(files) if file is not None]

    @functools.cached_property
    def settings_digest(self) -> str:
        """The part of the digest that all cases of the run share."""
        content = {
            "version": VERSION,
            "settings": _plain(self.settings),
            "files": [_content(file) for file in self.files],
            "outputs": [output.ending for output in self.outputs],
        }
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=DIGEST_SIZE).hexdigest()

    def digest(self, case: Mapping) -> str:
        """
        Return the digest of the result of a case, from the present content of its files.

        Raises:
            OSError: if a file cannot be read.
        """
        content = image_content(case["image"]).encode()
        return f"{self.settings_digest}-{hashlib.blake2b(content, digest_size=DIGEST_SIZE).hexdigest()}"

    def check(self, cases: Sequence[Mapping], overwrite: bool = False) -> None:
        """
        Check that the files replace no image, and none that this package did not write.

        Those of DICOM-SEG are left to :py:func:`~mednext_monai.data.check_dicom_seg`, which knows them.

        Args:
            cases: the cases, dictionaries with ``id`` and ``image``.
            overwrite: whether files of others may be replaced. Defaults to ``False``.

        Raises:
            ValueError: naming the files that would be replaced.
        """
        for output in self.outputs:
            if output.ending in CHECKED:
                check_outputs(cases, output.folder, overwrite, output.ending)

    def is_finished(self, case: Mapping) -> bool:
        """Return whether all files of a case are there and have the digest that this run would give them."""
        paths = [output.path(case) for output in self.outputs]
        digests = {read_digest(path) for output, path in zip(self.outputs, paths) if output.ending is None}
        found = digests.pop() if len(digests) == 1 else None
        if not found or not found.startswith(f"{self.settings_digest}-"):  # then the image need not be read
            return False
        missing = [output for output, path in zip(self.outputs, paths) if not path.is_file()]
        try:
            if missing and (not all(output.needs_foreground for output in missing) or _has_foreground(paths[0])):
                return False
            return found == self.digest(case)
        except (OSError, ValueError):  # is reported when the case is segmented
            return False

    def finished(self, cases: Sequence[Mapping]) -> set[str]:
        """Return the ids of the cases that are finished."""
        hidden = not sys.stderr.isatty()
        with ThreadPoolExecutor(THREADS) as pool:
            known = pool.map(self.is_finished, cases)
            found = list(tqdm(known, total=len(cases), desc="looking for finished cases", disable=hidden))
        return {case["id"] for case, is_finished in zip(cases, found) if is_finished}


def _flat(items: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in items:
        flat += _flat(item) if isinstance(item, (list, tuple)) else [item]
    return flat


def _content(path: str | PathLike) -> str | None:
    """Return a hash of the content of a file, or ``None`` if there is none; whatever uses it reports that."""
    try:
        return hash_file(path)[1]
    except OSError:
        return None


def _plain(value: Any, is_attribute: bool = False) -> Any:
    """Return what JSON can hold of a value: of an object its class and public attributes, of theirs the class."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, is_attribute) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, is_attribute) for item in value]
    if is_attribute:
        return type(value).__qualname__
    attributes = {name: item for name, item in vars(value).items() if name[0] != "_" and name not in WITHOUT_EFFECT}
    return {"class": type(value).__qualname__, **{name: _plain(item, True) for name, item in attributes.items()}}


def _has_foreground(path: Path) -> bool:
    return bool(read_stored(path)[0].any())
