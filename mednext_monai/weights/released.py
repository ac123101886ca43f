"""Weights that a bundle is released with: their record, recognizing them, and making room for a training.

``models/model.json`` describes the file ``models/model.pt`` that it names by its SHA-256; ``mednext bundle release``
writes both. A training in such a bundle does not count them as an earlier training of the user, and keeps them as
``models/pretrained.pt``.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..bundles.library import PLACEHOLDER, RECORD, names, path
from ..files import json_object, sha256, write_atomically
from .state_dict import is_placeholder

__all__ = [
    "StartingPoint",
    "find_pretrained",
    "is_released",
    "is_trained",
    "read_record",
    "set_aside",
    "starting_point",
]

WEIGHTS = "model.pt"
ASIDE = {WEIGHTS: "pretrained.pt", RECORD: "pretrained.json"}


def read_record(models: str | PathLike) -> dict[str, Any]:
    """Return the record of the weights in a folder, or an empty one if there is none."""
    found = json_object(Path(models, RECORD))
    return found if isinstance(found.get("sha256"), str) else {}


def is_released(file: str | PathLike) -> bool:
    """Return whether a checkpoint is the one that the record beside it describes."""
    file = Path(file)
    record = read_record(file.parent) if file.name == WEIGHTS and file.is_file() else {}
    return bool(record) and file.stat().st_size == record.get("bytes") and sha256(file) == record["sha256"]


def is_trained(file: str | PathLike) -> bool:
    """Return whether a checkpoint is there that a training of the user has written: no placeholder, none released."""
    return Path(file).is_file() and not is_placeholder(Path(file)) and not is_released(file)


def set_aside(models: str | PathLike, is_main_process: bool = True) -> None:
    """
    Rename released weights to ``pretrained.pt`` before a training, so that no command takes them for its result.

    Args:
        models: folder of the checkpoints of all folds.
        is_main_process: whether this process does it. Defaults to ``True``.
    """
    folder = Path(models)
    if not is_main_process or not is_released(folder / WEIGHTS):
        return
    for name, other in ASIDE.items():
        os.replace(folder / name, folder / other)
    write_atomically(folder / WEIGHTS, PLACEHOLDER)


def find_pretrained(pretrained: str | PathLike) -> str:
    """
    Return the checkpoint of a bundle: its ``model.pt``, or ``pretrained.pt`` if a training has taken that place.

    Args:
        pretrained: a checkpoint; the folder of a bundle; or the name of a bundle of this package.

    Raises:
        FileNotFoundError: if there is no such file, folder or name, listing the bundles that have weights.
    """
    given = Path(pretrained)
    if given.is_file():
        return str(given)
    if not given.exists() and str(pretrained) in names():
        given = path(str(pretrained))
    found = [given / "models" / name for name in (WEIGHTS, ASIDE[WEIGHTS])]
    usable = [file for file in found if is_trained(file) or is_released(file)]
    if not usable:
        have = [name for name in names() if is_released(path(name) / "models" / WEIGHTS)]
        known = f"those of this package are {', '.join(have)}" if have else "no bundle of this package has weights"
        wrong = "has no weights" if given.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"pretrained: {pretrained} {wrong}; allowed are a checkpoint, the folder of a bundle that has weights, or "
            f"the name of one: {known}."
        )
    return str(usable[0])


class StartingPoint(NamedTuple):
    """The checkpoint with which a training starts, if any, and whether it is of another task."""

    path: str | None
    is_transfer: bool


def starting_point(
    upkern_checkpoint: str | PathLike | None, pretrained: str | PathLike | None, resume: bool = False
) -> StartingPoint:
    """
    Return where a training starts.

    Args:
        upkern_checkpoint: a checkpoint of the same task, for UpKern.
        pretrained: see :py:func:`find_pretrained`.
        resume: whether the training is resumed, so that neither is needed. Defaults to ``False``.

    Raises:
        ValueError: if both are given.
        FileNotFoundError: if the file does not exist.
    """
    if upkern_checkpoint is not None and pretrained is not None:
        raise ValueError(
            f"upkern_checkpoint is {upkern_checkpoint} and pretrained is {pretrained}: a training starts from one of "
            "them, upkern_checkpoint for the same classes, pretrained for others."
        )
    if pretrained is None:
        return StartingPoint(None if upkern_checkpoint is None else str(upkern_checkpoint), False)
    return StartingPoint(None if resume else find_pretrained(pretrained), True)
