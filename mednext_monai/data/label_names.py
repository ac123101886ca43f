"""Classes, regions and the ignore label in the ``labels`` of ``dataset.json``.

nnU-Net v2 may label overlapping regions, such as ``{"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3}``.
The label files nevertheless contain exclusive integers, and these are the classes of a MedNeXt, as the authors train
on BraTS; the regions are their unions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .folds import shorten

__all__ = ["LabelNames", "parse_labels"]

INTEGER = re.compile(r"-?[0-9]+")
MAX_SHOWN = 10  # labels in a message
IGNORE = "ignore"  # nnU-Net v2's name of the label of voxels without annotation


class LabelNames(NamedTuple):
    """The names in ``dataset.json``."""

    classes: list[str]  # by value, background first
    regions: dict[str, list[int]]  # values of the classes that each region unites
    ignore_label: int | None  # value of voxels without annotation


def parse_labels(labels: Any, regions_class_order: Any = None) -> LabelNames:
    """
    Return the names of classes and regions, and the ignore label.

    Args:
        labels: ``{"0": "background", "1": "liver"}`` (Decathlon, nnU-Net v1), ``{"background": 0, "liver": 1}`` or
            ``{"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}`` (nnU-Net v2).
        regions_class_order: that of ``dataset.json``. It is the order in which nnU-Net v2 draws regions over each
            other, for which classes have no need; it is only checked. Defaults to ``None``.

    Raises:
        ValueError: without the name of the file, if a value is not an integer or a list of integers; the classes are
            not numbered without gaps or repetitions from 0, the background; a label is in no region; or the ignore
            label is not the highest.
    """
    if not isinstance(labels, dict):
        raise ValueError(f"'labels' must be an object, got {shorten(labels)}")
    named = [_name_and_values(key, value) for key, value in labels.items()]
    ignore = _ignore_label(named)
    named = [(name, united) for name, united in named if name != IGNORE]
    regions: dict[str, list[int]] = {}
    if any(len(united) > 1 for _, united in named):
        names, regions = _classes_of_regions(dict(named), regions_class_order)
    else:
        names = {united[0]: name for name, united in named}
    count = len(names)
    if sorted(names) != list(range(count)) or count < 2 or (not regions and count < len(named)):
        raise ValueError(
            "'labels' must be the background as 0 and at least one class, numbered without gaps or repetitions; got "
            f"{shorten(labels)}"
        )
    if ignore is not None and ignore != count:
        raise ValueError(f"the label 'ignore' must be the highest, {count}, one above the classes; got {ignore}")
    return LabelNames([names[value] for value in range(count)], regions, ignore)


def _name_and_values(key: str, value: Any) -> tuple[str, list[int]]:
    """Return the name of a label and its values, of which there are several for a region."""
    number, name = (key, value) if INTEGER.fullmatch(key) else (value, key)
    items = number if isinstance(number, list) else [number]
    is_name = isinstance(name, (str, int, float)) and not isinstance(name, bool) and str(name).strip() != ""
    if not is_name or not items or not all(INTEGER.fullmatch(str(item)) for item in items):  # 1.5, true, null, ...
        raise ValueError(f"label {key!r}: {shorten(value)} has no integer value or no name")
    united = [int(item) for item in items]
    if len(set(united)) < len(united):
        raise ValueError(f"label {key!r}: {shorten(value)} contains a value twice")
    return str(name), united


def _ignore_label(named: Sequence[tuple[str, Sequence[int]]]) -> int | None:
    """Return the value of the ignore label, if there is one."""
    ignored = [value for name, united in named if name == IGNORE for value in united]
    highest = max((value for name, united in named if name != IGNORE for value in united), default=0)
    if len(ignored) > 1:
        raise ValueError(f"the label 'ignore' must be one integer, got {ignored}")
    if ignored and ignored[0] <= highest:
        raise ValueError(f"the label 'ignore' must be the highest, above {highest}, as in nnU-Net v2; got {ignored[0]}")
    return ignored[0] if ignored else None


def _classes_of_regions(values: Mapping[str, Sequence[int]], order: Any) -> tuple[dict[int, str], dict[str, list[int]]]:
    """Return the names of the exclusive classes by value, background included, and the regions."""
    background = [name for name, united in values.items() if list(united) == [0]]
    regions = {name: list(united) for name, united in values.items() if name not in background}
    wrong = {name: united for name, united in regions.items() if min(united) < 1}
    if len(background) != 1 or wrong:
        raise ValueError(
            "region-based 'labels' need the background, 0, as a label of its own and regions of positive integers; got "
            f"{shorten(wrong or dict(values))}"
        )
    used = {value for united in regions.values() for value in united}
    if len(used) < max(used):
        missing = list(islice((value for value in range(1, max(used)) if value not in used), MAX_SHOWN + 1))
        more = ", ..." if len(missing) > MAX_SHOWN else ""
        raise ValueError(
            f"the label(s) {', '.join(map(str, missing[:MAX_SHOWN]))}{more} are in no region; all integers from 1 to "
            f"the highest, {max(used)}, must be"
        )
    if order is not None and (not isinstance(order, list) or len(order) != len(regions)):
        raise ValueError(
            f"'regions_class_order' must list {len(regions)} integers, one for each region; got {shorten(order)}"
        )
    return {0: background[0], **_class_names(regions, sorted(used))}, regions


def _class_names(regions: Mapping[str, Sequence[int]], values: Sequence[int]) -> dict[int, str]:
    """
    Name the classes after the regions that they are in: ``"tumor core without enhancing"``.

    A class that is a region by itself has its name. Otherwise the name is that of the smallest regions around it,
    without those of the largest that they contain or intersect. Classes that are in the same regions have their value
    in the name too.
    """
    sets = {name: frozenset(united) for name, united in regions.items()}
    names = {value: _class_name(value, sets) for value in values}
    taken: dict[str, int] = {}
    for value, name in names.items():
        shared = list(names.values()).count(name) > 1 or (name in sets and sets[name] != {value})
        unique = f"{name} ({value})" if shared else name
        while unique in taken or (shared and unique in sets):
            unique += f" ({value})"
        taken[unique] = value
    return {value: name for name, value in taken.items()}


def _class_name(value: int, sets: Mapping[str, frozenset[int]]) -> str:
    alone = [name for name, united in sets.items() if united == {value}]
    if alone:
        return alone[0]
    around = {name: united for name, united in sets.items() if value in united}
    smallest = [name for name, united in around.items() if not any(other < united for other in around.values())]
    common = frozenset.intersection(*(sets[name] for name in smallest))
    others = {name: united & common for name, united in sets.items() if value not in united and united & common}
    largest = [name for name, part in others.items() if not any(part < other for other in others.values())]
    return " and ".join(smallest) + (f" without {' and '.join(largest)}" if largest else "")
