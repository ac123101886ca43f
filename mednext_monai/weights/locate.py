"""Where the checkpoints of a fold are: fold 0 in ``models/`` itself, where MONAI's tools look, others in subfolders."""

from __future__ import annotations

import logging
from pathlib import Path

from .state_dict import is_placeholder

__all__ = ["find_checkpoint", "fold_folder", "fold_name"]

logger = logging.getLogger(__name__)
WEIGHTS = "model.pt"  # after the last epoch


def fold_name(fold: int | str) -> int | str:
    """
    Return a fold as an index or ``"all"``, whether it was typed as a number or as text.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(fold, bool) and (str(fold) == "all" or str(fold).isdecimal()):
        return "all" if str(fold) == "all" else int(fold)
    raise ValueError(f"fold must be one of 0, 1, 2, ... or 'all', got {fold!r}.")


def fold_folder(ckpt_dir: str | Path, fold: int | str) -> str:
    """
    Return the folder of the checkpoints of a fold: ``ckpt_dir`` for fold 0, ``ckpt_dir/fold_<k>`` for all others.

    Raises:
        ValueError: if the fold is neither an index nor ``"all"``.
    """
    name = fold_name(fold)
    return str(ckpt_dir) if name == 0 else f"{ckpt_dir}/fold_{name}"


def find_checkpoint(checkpoint: str | Path | None, ckpt_dir: str | Path, fold: int | str | None = None) -> str:
    """
    Return the checkpoint to use.

    Args:
        checkpoint: the path if the user names one; it takes precedence. ``None`` for the weights after the last epoch.
        ckpt_dir: folder of the checkpoints of all folds.
        fold: the fold. Defaults to ``None``: ``model.pt`` in ``ckpt_dir``, or if it is absent or the placeholder of a
            bundle, that of the only fold that has one.

    Raises:
        ValueError: if ``fold`` is ``None`` and several folds have a ``model.pt``, but fold 0 has none, listing them.
    """
    if checkpoint is not None:
        return str(checkpoint)  # a name such as 2024 arrives as a number
    if fold is not None:
        return f"{fold_folder(ckpt_dir, fold)}/{WEIGHTS}"
    first = Path(ckpt_dir, WEIGHTS)
    if first.is_file() and not is_placeholder(first):
        return str(first)
    found = sorted(str(file) for file in Path(ckpt_dir).glob(f"fold_*/{WEIGHTS}") if file.is_file())
    if len(found) > 1:
        raise ValueError(
            f"fold: {first} has no weights, but several folds do: {', '.join(found)}; choose one with --fold."
        )
    if found:
        logger.info(f"{first} has no weights: using {found[0]}, the only fold that has")
    return found[0] if found else str(first)
