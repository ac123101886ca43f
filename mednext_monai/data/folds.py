"""Training and validation splits: the original's five folds, or the user's own.

Source: nnU-Net v1 as used by MedNeXt (recipe of the authors' code): ``sklearn.model_selection.KFold(5, shuffle=True,
random_state=12345)`` over the sorted case ids. Reproduced with NumPy, whose ``RandomState`` is frozen.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["make_folds", "read_groups", "read_splits", "select_fold"]

Split = dict[str, list[str]]


def make_folds(
    ids: Sequence[str], groups: Mapping[str, str] | None = None, folds: int = 5, seed: int = 12345
) -> list[Split]:
    """
    Split case ids into folds for cross-validation.

    Args:
        ids: unique case ids.
        groups: group, such as the patient, of each case. Groups are split instead of cases, in the order of their first
            case, so that no group is in both training and validation; folds may differ in size. With one case per group
            the result is the same as without groups. Defaults to ``None``.
        folds: number of folds. Defaults to 5.
        seed: seed of the shuffling. Defaults to 12345, the original's.

    Returns:
        ``{"train": ids, "val": ids}`` of each fold, with sorted ids.

    Raises:
        ValueError: if ids are not unique, a case has no group, or there are fewer cases or groups than folds.
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
    if folds < 2 or len(members) < folds:
        kind = "cases" if groups is None else "groups"
        raise ValueError(f"folds must be at least 2 and at most the number of {kind}, {len(members)}; got {folds}.")
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
    try:
        splits = json.loads(Path(path).read_text())
    except ValueError as e:
        raise ValueError(f"{path}: not valid JSON: {e}") from e
    shaped = isinstance(splits, list) and splits
    if not shaped or not all(isinstance(s, dict) and s.get("train") and s.get("val") for s in splits):
        raise ValueError(f'{path}: must be a list of {{"train": [ids], "val": [ids]}}, none of them empty.')
    splits = [{side: [str(case) for case in split[side]] for side in ("train", "val")} for split in splits]
    for number, split in enumerate(splits):
        unknown = sorted(set(split["train"] + split["val"]) - set(ids))
        if unknown:
            raise ValueError(f"{path}: fold {number} names cases that the data set lacks: {', '.join(unknown)}.")
        both = sorted(set(split["train"]) & set(split["val"]))
        if both:
            raise ValueError(f"{path}: fold {number} has cases in both train and val: {', '.join(both)}.")
        if groups is not None:
            sides = [{groups[case] for case in split[side] if case in groups} for side in ("train", "val")]
            if sides[0] & sides[1]:
                shared = ", ".join(sorted(sides[0] & sides[1]))
                raise ValueError(f"{path}: fold {number} has groups in both train and val: {shared}.")
    return splits


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
