"""Where the checkpoints of a fold are: fold 0 in ``models/`` itself, where MONAI's tools look, others in subfolders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from .state_dict import is_placeholder

__all__ = ["find_checkpoint", "find_checkpoints", "fold_folder", "fold_name"]

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


def find_checkpoints(
    checkpoint: str | Path | None,
    ckpt_dir: str | Path,
    fold: int | str | None = None,
    folds: Sequence[int | str] | None = None,
) -> list[str]:
    """
    Return the checkpoints whose probabilities an inference averages: one, or those of several folds.

    Args:
        checkpoint, ckpt_dir, fold: see :py:func:`find_checkpoint`.
        folds: the folds to average. Defaults to ``None``: one checkpoint.

    Raises:
        ValueError: if ``folds`` is empty or names a fold twice, or is given together with ``checkpoint`` or ``fold``;
            others as for :py:func:`find_checkpoint`.
        FileNotFoundError: if a fold has no ``model.pt``, listing all such folds.
    """
    if folds is None:
        return [find_checkpoint(checkpoint, ckpt_dir, fold)]
    if checkpoint is not None or fold is not None:
        name, value = ("checkpoint", checkpoint) if checkpoint is not None else ("fold", fold)
        raise ValueError(f"folds: {list(folds)} cannot be used together with {name}, which is {value!r}.")
    names = [fold_name(one) for one in folds]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"folds must name one or more folds, each once, got {list(folds)}.")
    found = {one: Path(fold_folder(ckpt_dir, one), WEIGHTS) for one in names}
    missing = [f"{one} ({file})" for one, file in found.items() if not file.is_file() or is_placeholder(file)]
    if missing:
        raise FileNotFoundError(f"folds: no weights of fold {', '.join(missing)}; train them, or leave them out.")
    return [str(file) for file in found.values()]
