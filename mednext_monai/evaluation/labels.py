"""What is evaluated: classes, regions and the label that is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ..data.label_names import parse_labels
from ..files import read_json

__all__ = ["LARGEST_CLASS", "Labels", "read_labels", "task_labels"]

LARGEST_CLASS = 2**15 - 1  # of label maps, which are int16


@dataclass(frozen=True)
class Labels:
    """
    The classes and regions of a data set, background excluded.

    Args:
        classes: value in the label maps by class name. Defaults to ``None``: the values found in the files are the
            classes, named after themselves.
        regions: values of the classes that a region unites, by region name. Defaults to no regions.
        ignore: value of voxels without annotation, which are excluded from every count. Defaults to ``None``.
        only_regions: evaluate the regions instead of the classes. Defaults to ``False``.

    Raises:
        ValueError: if a value is not a positive integer that fits int16, two classes have the same value, a region
            contains a value that is not a class, or a region has the name of a class but is another set of voxels.
    """

    classes: Mapping[str, int] | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ignore: int | None = None
    only_regions: bool = False

    def __post_init__(self) -> None:
        if self.ignore is not None and (type(self.ignore) is not int or self.ignore == 0):
            raise ValueError(f"the ignore label must be an integer other than 0, got {self.ignore!r}.")
        if self.classes is not None:
            _check_classes(self.classes, self.ignore)
        known = None if self.classes is None else set(self.classes.values())
        for name, values in self.regions.items():
            _check_region(name, values, known, self.ignore)
            same_name = self.classes is not None and not self.only_regions and name in self.classes
            if same_name and tuple(values) != (self.classes[name],):  # type: ignore[index]
                raise ValueError(
                    f"the region {name!r} has the name of the class {self.classes[name]}, "  # type: ignore[index]
                    f"but consists of {list(values)}; names must be unique."
                )
        if self.only_regions and not self.regions:
            raise ValueError("only_regions needs regions, got none.")

    def named_values(self, found: Sequence[int] = ()) -> dict[str, tuple[int, ...]]:
        """
        Return the values of everything that is evaluated, by name: classes first, then regions.

        Args:
            found: the foreground values of the files, which are the classes if these are not known.
        """
        classes = {str(value): value for value in found} if self.classes is None else self.classes
        named = {} if self.only_regions else {name: (value,) for name, value in classes.items()}
        return {**named, **{name: tuple(values) for name, values in self.regions.items()}}

    def unexpected(self, found: Sequence[int]) -> list[int]:
        """Return the values of ``found`` that are neither classes nor the ignored label, if the classes are known."""
        known = None if self.classes is None else {*self.classes.values(), self.ignore}
        return [] if known is None else sorted(set(found) - known)


def task_labels(
    class_names: Sequence[str], regions: Mapping[str, Sequence[int]] | None = None, ignore_label: int | None = None
) -> Labels:
    """
    Return what is evaluated of a task, from the settings of a bundle.

    Args:
        class_names: names of the classes by value, background first.
        regions: values of the classes that a region unites, by region name. Defaults to ``None``: no regions.
        ignore_label: value of voxels without annotation. Defaults to ``None``.

    Raises:
        ValueError: as for :py:class:`Labels`.
    """
    classes = {name: value for value, name in enumerate(class_names) if value not in (0, ignore_label)}
    return Labels(classes, {name: _as_list(values) for name, values in (regions or {}).items()}, ignore_label)


def read_labels(
    labels: str | PathLike | None = None, regions: str | PathLike | None = None, only_regions: bool = False
) -> Labels:
    """
    Read what is evaluated from files.

    Args:
        labels: a ``dataset.json`` of Decathlon, nnU-Net v1 or nnU-Net v2, or a plan of ``mednext plan`` (its
            ``labels``, ``regions`` and ``ignore_label``). If labels of nnU-Net v2 are lists, all of them are regions,
            which are evaluated beside the classes that they consist of, as in a bundle of the data set. Its label
            ``ignore`` is ignored. Defaults to ``None``: the classes are the values found in the files.
        regions: a JSON file such as ``{"whole tumor": [1, 2, 3]}``; its regions replace those of ``labels``. Defaults
            to ``None``.
        only_regions: evaluate the regions instead of the classes. Defaults to ``False``.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not valid; the message names it.
    """
    classes: dict[str, int] | None = None
    united: dict[str, Sequence[int]] = {}
    ignore = None
    contents = {path: read_json(path) for path in (labels, regions) if path is not None}
    source: str | PathLike | None = labels if labels is not None else regions
    try:
        if labels is not None:
            classes, united, ignore = _parse(_object(contents[labels]))
        if regions is not None:
            source = regions
            united = _regions(_object(contents[regions]))
        return Labels(classes, united, ignore, only_regions)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if source is None else f"{source}: {error}") from error


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"must contain an object, got {type(content).__name__}.")
    return content


def _regions(content: Any) -> dict[str, Sequence[int]]:
    if not isinstance(content, dict):
        raise ValueError(f'regions must be an object such as {{"whole tumor": [1, 2, 3]}}, got {content!r}.')
    return {name: _as_list(values) for name, values in content.items()}


def _parse(content: dict[str, Any]) -> tuple[dict[str, int], dict[str, Sequence[int]], int | None]:
    """Return classes, regions and ignored label."""
    labels = content.get("labels")
    if isinstance(labels, list):  # a plan: names by value, background first
        united = _regions(content.get("regions") or {})
        return {str(name): i for i, name in enumerate(labels) if i}, united, content.get("ignore_label")
    if not isinstance(labels, dict):
        raise ValueError("needs 'labels', as in dataset.json or in a plan of mednext plan.")
    values = dict(_name_and_value(key, value) for key, value in labels.items())
    ignore = values.pop("ignore", None)
    if isinstance(ignore, list):
        raise ValueError(f"the label 'ignore' must be one integer, got {ignore}.")
    foreground = {name: value for name, value in values.items() if value not in (0, [0])}
    if not any(isinstance(value, list) for value in foreground.values()):
        return foreground, {}, ignore
    named = parse_labels(labels, content.get("regions_class_order"))
    return {name: i for i, name in enumerate(named.classes) if i}, dict(named.regions), named.ignore_label


def _name_and_value(key: str, value: Any) -> tuple[str, Any]:
    """Return name and value from ``{"1": "liver"}`` (Decathlon, nnU-Net v1) or ``{"liver": 1}`` (nnU-Net v2)."""
    if isinstance(value, str) and key.isdigit():
        return value, int(key)
    if isinstance(value, str) and value.isdigit():
        return key, int(value)
    return key, value


def _as_list(values: Any) -> list[int]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _is_class(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_CLASS


def _check_classes(classes: Mapping[str, int], ignore: int | None) -> None:
    wrong = {name: value for name, value in classes.items() if not _is_class(value) or value == ignore}
    if wrong or len(set(classes.values())) < len(classes) or not classes:
        raise ValueError(
            f"the classes must have different positive integers up to {LARGEST_CLASS}"
            f"{'' if ignore is None else f', without {ignore}'}; got {wrong or dict(classes)}."
        )


def _check_region(name: str, values: Sequence[int], known: set[int] | None, ignore: int | None) -> None:
    integers = all(_is_class(value) and value != ignore for value in values)
    if name.isdigit():
        raise ValueError(f"the name of a region must not be a number, got {name!r}: classes without names have such.")
    if not values or not integers or len(set(values)) < len(values):
        raise ValueError(
            f"the region {name!r} must be a list of different positive integers up to {LARGEST_CLASS}, got "
            f"{list(values)}."
        )
    if known is not None and set(values) - known:
        raise ValueError(
            f"the region {name!r} contains {sorted(set(values) - known)}; the classes are {sorted(known)}."
        )
