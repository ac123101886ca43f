"""Training and validation splits: the original's five folds, or the user's own.

Source: nnU-Net v1 as used by MedNeXt (recipe of the authors' code): ``sklearn.model_selection.KFold(5, shuffle=True,
random_state=12345)`` over the sorted case ids. Reproduced with NumPy, whose ``RandomState`` is frozen.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json

__all__ = ["check_splits", "make_folds", "read_groups", "read_splits", "select_fold"]

Split = dict[str, list[str]]
FOLDS = 5  # as published
SIDES = ("train", "val")
MAX_SHOWN = 5  # case ids in one message


def make_folds(
    ids: Sequence[str], groups: Mapping[str, str] | None = None, folds: int | None = None, seed: int = 12345
) -> list[Split]:
    """
    Split case ids into folds for cross-validation.

    Args:
        ids: unique case ids.
        groups: group, such as the patient, of each case. Groups are split instead of cases, in the order of their first
            case, so that no group is in both training and validation; folds may differ in size. With one case per group
            the result is the same as without groups. Defaults to ``None``.
        folds: number of folds. Defaults to ``None``: 5, or one per case or group if there are fewer than 5.
        seed: seed of the shuffling. Defaults to 12345, the original's.

    Returns:
        ``{"train": ids, "val": ids}`` of each fold, with sorted ids.

    Raises:
        ValueError: if ids are not unique, a case has no group, or there are fewer cases or groups than folds or than 2.
    """
    ids = sorted(ids)
    twice = sorted({a for a, b in zip(ids, ids[1:]) if a == b})
    if twice:
        raise ValueError(f"case ids must be unique, got more than once: {', '.join(twice)}.")
    if groups is not None:
        lacking = [case for case in ids if case not in groups]
        if lacking:
            raise ValueError(f"groups must name every case; without a group: {', '.join(lacking)}.")
    members: dict[str, list[str]] = {}
    for case in ids:
        members.setdefault(case if groups is None else groups[case], []).append(case)
    kind = "case" if groups is None else "group"
    if folds is None and len(members) < 2:
        raise ValueError(
            f"{len(members)} {kind} cannot be split into folds for training and validation; train and validate on it "
            "with --fold all."
        )
    folds = min(FOLDS, len(members)) if folds is None else folds
    if folds < 2 or len(members) < folds:
        raise ValueError(f"folds must be at least 2 and at most the number of {kind}s, {len(members)}; got {folds}.")
    units = list(members.values())
    order = np.arange(len(units))
    np.random.RandomState(seed).shuffle(order)
    splits = []
    for chosen in np.array_split(order, folds):  # the first n mod folds are larger by one, as in KFold
        val = {case for unit in chosen for case in units[unit]}
        splits.append({"train": [case for case in ids if case not in val], "val": sorted(val)})
    return splits


def read_splits(path: str | Path, ids: Sequence[str], groups: Mapping[str, str] | None = None) -> list[Split]:
    """
    Read nnU-Net's ``splits_final.json``: a list of ``{"train": [ids], "val": [ids]}``.

    Args:
        path: the file.
        ids: the case ids of the data set.
        groups: group of each case; no group may be in both training and validation. Defaults to ``None``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a list, contains unknown cases, or has a case or a group in both parts of a
            fold.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"splits: {path} does not exist; expected a JSON file with the folds.")
    return check_splits(read_json(path), ids, path, groups)


def check_splits(
    splits: Any,
    ids: Sequence[str] | None,
    source: str | Path,
    groups: Mapping[str, str] | None = None,
    hint: str = "",
) -> list[Split]:
    """
    Check folds that a user wrote.

    Args:
        splits: the folds, each ``{"train": ids, "val": ids}``; ids may be integers.
        ids: the case ids of the data set, or ``None`` to allow any.
        source: the file or option that they come from, for messages.
        groups: as for :py:func:`read_splits`.
        hint: sentence that follows the message about unknown cases. Defaults to ``""``.

    Returns:
        the folds, with ids as strings.

    Raises:
        ValueError: as for :py:func:`read_splits`, naming ``source`` and the fold.
    """
    if not isinstance(splits, (list, tuple)) or not splits:
        raise ValueError(f'{source}: must be a list of {{"train": [ids], "val": [ids]}}, got {shorten(splits)}.')
    checked = [{side: _ids(split, side, f"{source}: fold {n}") for side in SIDES} for n, split in enumerate(splits)]
    for number, split in enumerate(checked):
        unknown = [] if ids is None else sorted(set(split["train"] + split["val"]) - set(ids))
        if unknown:
            raise ValueError(f"{source}: fold {number} names cases that the data set lacks: {some(unknown)}.{hint}")
        both = sorted(set(split["train"]) & set(split["val"]))
        if both:
            raise ValueError(f"{source}: fold {number} has cases in both train and val: {some(both)}.")
        if groups is not None:
            sides = [{groups[case] for case in split[side] if case in groups} for side in SIDES]
            if sides[0] & sides[1]:
                shared = some(sorted(sides[0] & sides[1]))
                raise ValueError(f"{source}: fold {number} has groups in both train and val: {shared}.")
    return checked


def _ids(split: Any, side: str, where: str) -> list[str]:
    """Return one side of a fold as strings; ``where`` names the fold for messages."""
    if not isinstance(split, Mapping) or side not in split:
        raise ValueError(f'{where} must be {{"train": [ids], "val": [ids]}}, got {shorten(split)}.')
    members = split[side]
    if not isinstance(members, (list, tuple)) or not members:
        raise ValueError(f'{where}: "{side}" must be a list of case ids that is not empty, got {shorten(members)}.')
    wrong = [case for case in members if isinstance(case, bool) or not isinstance(case, (str, int))]
    if wrong:
        raise ValueError(f'{where}: "{side}" must contain case ids only, got {shorten(wrong[0])}.')
    return [str(case) for case in members]


def some(names: Sequence[str]) -> str:
    """Return the first names of a list and the number of the others."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


def shorten(value: Any) -> str:
    """Return a value as it is written in Python, cut to one line of a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_groups(path: str | Path, ids: Sequence[str]) -> dict[str, str]:
    """
    Read the group of each case from a CSV file with two columns, case id and group (patient) id.

    Lines of other cases, such as a header, are ignored.

    Args:
        path: the file.
        ids: the case ids of the data set.

    Raises:
        ValueError: if the file cannot be read, or a case of the data set has no group or two groups.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e
    short = [",".join(row) for row in rows if len(row) < 2 or not row[1]]
    if short:
        raise ValueError(f"{path}: each line must be 'case id,group id', got {short[0]!r}.")
    groups: dict[str, str] = {}
    for case, group in (row[:2] for row in rows):
        if groups.setdefault(case, group) != group:
            raise ValueError(f"{path}: case {case} has two groups, {groups[case]} and {group}.")
    lacking = sorted(set(ids) - set(groups))
    if lacking:
        raise ValueError(f"{path}: no group for {len(lacking)} of {len(ids)} cases: {', '.join(lacking)}.")
    return {case: groups[case] for case in ids}


def select_fold(splits: Sequence[Split], fold: int | str, ids: Sequence[str]) -> Split:
    """
    Return the training and validation ids of one fold.

    Args:
        splits: result of :py:func:`make_folds` or :py:func:`read_splits`.
        fold: fold index, from 0, or ``"all"`` to train and validate on every case.
        ids: the case ids of the data set.

    Raises:
        ValueError: if there is no such fold. (The original then draws a random 80:20 split.)
    """
    if fold == "all":
        return {"train": sorted(ids), "val": sorted(ids)}
    if str(fold).isdigit() and int(fold) < len(splits):
        return splits[int(fold)]
    raise ValueError(f"fold must be one of {list(range(len(splits)))} or 'all', got {fold!r}.")
