"""Removal of all but the largest component: where it raises the Dice, and how it is applied.

Source: ``determine_postprocessing`` of nnU-Net v1 (``postprocessing/connected_components.py`` of the authors' code).
The decision is the original's; it is made without writing segmentations.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..arrays import value_counts
from ..data.checks import check_outputs
from ..data.io import read_label, write_segmentation
from ..environment import package_versions
from ..files import json_object, read_json, write_atomically
from ..parallel import map_cases
from ..preprocessing.geometry import spacing_of
from .cases import FileStates, Pair, files_by_case, naming_files, pair_cases, read_pair
from .folder import refuse_unexpected
from .labels import LARGEST_CLASS, Labels

__all__ = [
    "Postprocessing",
    "Step",
    "apply_postprocessing",
    "apply_to_folder",
    "check_decision",
    "find_postprocessing",
    "read_postprocessing",
]

RAW, JOINT, SEPARATE = "raw", "all_classes_joined", "each_class_alone"
Dice = dict[int, float]
TRAP = (
    "note: the means of {} are over different numbers of cases: where a false positive is removed completely, a Dice "
    "of 0 becomes no value, so that the mean rises, as published. --strict compares the same cases."
)


@dataclass(frozen=True)
class Step:
    """
    One removal: of the components of these classes, joined to one mask, only the largest ones stay.

    Attributes:
        classes: their values.
        minimum_size_mm3: components of at least this size stay too. Defaults to ``None``: none of them.
    """

    classes: tuple[int, ...]
    minimum_size_mm3: float | None = None


@dataclass(frozen=True)
class Postprocessing:
    """
    A decision of :py:func:`find_postprocessing`.

    Attributes:
        steps: the removals, in the order in which they are applied; none if nothing improves the Dice.
        dice: by class name, the mean Dice ``raw``, with ``all_classes_joined`` and with ``each_class_alone``, and the
            number of cases that have a value in each (``*_values``).
        settings: what determined the decision.
    """

    steps: tuple[Step, ...] = ()
    dice: Mapping[str, Mapping[str, float | int | None]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: str | PathLike) -> None:
        """Write the decision as JSON, atomically."""
        steps = [{"classes": list(step.classes), "minimum_size_mm3": step.minimum_size_mm3} for step in self.steps]
        content = {
            "keep_largest_component": steps,
            "dice": self.dice,
            "settings": self.settings,
            "versions": package_versions(),
        }
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())

    def describe(self) -> str:
        """Return the decision in words, with the Dice of every class."""
        rows: list[tuple[str, ...]] = [("", "raw", "all joined", "each alone", "values")]
        for name, found in self.dice.items():
            shown = ["" if key not in found else _shown(found[key]) for key in (RAW, JOINT, SEPARATE)]
            counts = [str(found[f"{key}_values"]) for key in (RAW, JOINT, SEPARATE) if f"{key}_values" in found]
            rows.append((name, *shown, " / ".join(counts)))
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        steps = [f"  keep the largest component of {_classes_text(step)}" for step in self.steps]
        lost = [name for name, found in self.dice.items() if len({found[key] for key in found if "_values" in key}) > 1]
        note = TRAP.format(", ".join(lost)) if lost else ""
        return "\n".join([*table, *([note] if note else []), "", *(steps or ["  none: nothing raises the Dice"])])


def find_postprocessing(
    prediction_dir: str | PathLike,
    label_dir: str | PathLike | Mapping[str, str],
    labels: Labels | None = None,
    strict: bool = False,
    count_absent_as_one: bool = False,
    minimum_sizes: bool = False,
    allow_missing: bool = False,
    processes: int | None = None,
) -> Postprocessing:
    """
    Decide, as the original, for which classes all but the largest component are removed.

    First, the largest component of all classes joined to one mask is kept; this is accepted if the mean Dice of at
    least one class rises and that of none falls. Then, if there are several classes, the largest component of each one
    is kept, starting from the result of the first step if that was accepted; this is accepted for each class whose mean
    Dice rises. Components are voxels connected by faces; all of the same largest size stay; removed voxels become
    background.

    As published, a class that is neither in the prediction nor in the reference of a case has no Dice there, and the
    mean is over the cases that have one. This is a trap: if a false positive is removed completely, a Dice of 0 becomes
    no value, and the mean rises, even if the Dice falls in other cases. ``strict`` and ``count_absent_as_one`` keep the
    cases that are compared the same.

    Args:
        prediction_dir: folder of the predictions, best those of all cases by the fold that did not train on them.
        label_dir: folder of the reference labels, or the label files by case id.
        labels: the classes, and the label that is ignored; regions are not used. Defaults to ``None``: the values found
            in the files are the classes.
        strict: compare means only over the cases that have a value both before and after. Defaults to ``False``.
        count_absent_as_one: the Dice of a class that is in neither of both is 1. Defaults to ``False``.
        minimum_sizes: remove only components that are smaller than the smallest of all cases' largest components, the
            original's ``advanced_postprocessing``. Defaults to ``False``, as published.
        allow_missing: leave out labels without a prediction, as when one fold was predicted. Defaults to ``False``.
        processes: number of processes. Defaults to ``None``: one per available core.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if an argument is invalid, or any case cannot be read or is changed meanwhile: the decision is made
            on all cases or not at all.
    """
    pairs, problems = pair_cases(prediction_dir, label_dir, allow_missing)
    _refuse(problems)
    states = FileStates(pairs)
    labels = _with_classes(labels or Labels(), pairs, processes)
    compare = functools.partial(_compare, strict=strict, count_absent_as_one=count_absent_as_one)
    steps, results = _decide(_Trials(pairs, labels, processes, minimum_sizes), compare)
    _refuse(states.changed())
    classes = dict(labels.classes or {})
    return Postprocessing(
        steps=tuple(steps),
        dice={name: _means(results, value, count_absent_as_one) for name, value in classes.items()},
        settings={
            "prediction_dir": str(prediction_dir),
            **({} if isinstance(label_dir, Mapping) else {"label_dir": str(label_dir)}),
            "cases": len(pairs),
            "classes": classes,
            "ignore_label": labels.ignore,
            "strict": strict,
            "count_absent_as_one": count_absent_as_one,
            "minimum_sizes": minimum_sizes,
        },
    )


def read_postprocessing(path: str | PathLike) -> Postprocessing:
    """
    Read a decision of :py:func:`find_postprocessing`, or the original's ``postprocessing.json``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; mednext find-postprocessing writes one.")
    content = read_json(path)
    try:
        json.dumps(content, allow_nan=False)  # raises
        if "for_which_classes" in content:
            steps = _original_steps(content)
        else:
            steps = [Step(tuple(s["classes"]), s["minimum_size_mm3"]) for s in content["keep_largest_component"]]
        for step in steps:
            _check_step(step)
        dice, settings = content.get("dice", {}), content.get("settings", {})
        if not isinstance(settings, dict) or not isinstance(dice, dict) or not all(map(_is_dice, dice.values())):
            raise ValueError("dice must hold numbers by class and trial, and settings must be an object")
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path}: is not a decision about post-processing: {error!s}.") from error
    return Postprocessing(tuple(steps), dice, settings)


def _check_step(step: Step) -> None:
    if not step.classes or not all(type(c) is int and 0 < c <= LARGEST_CLASS for c in step.classes):
        raise ValueError(f"the classes of a step must be integers from 1 to {LARGEST_CLASS}, got {step.classes}")
    size = step.minimum_size_mm3
    if size is not None and (isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf):
        raise ValueError(f"a minimum size must be a number of mm³ or null, got {size!r}")


def _is_dice(trials: Any) -> bool:
    """Return whether the Dice of a class is that of a decision: a number, or none, by trial."""
    numbers = (int, float, type(None))
    return isinstance(trials, dict) and all(isinstance(value, numbers) for value in trials.values())


def apply_postprocessing(
    segmentation: np.ndarray, postprocessing: Postprocessing, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """
    Remove components as decided.

    Args:
        segmentation: class indices, integers ``(X, Y, Z)``; not changed.
        postprocessing: the decision.
        spacing: edges of a voxel in mm; needed if a step has a minimum size. Defaults to ``None``.

    Returns:
        a new array, in which removed voxels are 0.

    Raises:
        ValueError: if a step has a minimum size and there is no spacing.
    """
    result = segmentation.copy()
    for step in postprocessing.steps:
        if step.minimum_size_mm3 is not None and spacing is None:
            raise ValueError("the spacing is needed, since the post-processing has a minimum size in mm³.")
        _keep_largest(result, step, _voxel_volume(spacing))
    return result


def apply_to_folder(
    prediction_dir: str | PathLike,
    output_dir: str | PathLike,
    postprocessing: Postprocessing,
    overwrite: bool = False,
    processes: int | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """
    Apply a decision to all segmentations of a folder, which stay as they are.

    Results are ``<output_dir>/<case>.nii.gz`` with the header of their segmentation; the decision is written beside
    them as ``postprocessing.json``. A case that cannot be read, or is changed meanwhile, does not stop the others.

    Args:
        prediction_dir: folder of the segmentations.
        output_dir: another folder.
        postprocessing: the decision.
        overwrite: whether files may be replaced that this package did not write. Defaults to ``False``.
        processes: number of processes. Defaults to ``None``: one per available core.

    Returns:
        the files that were written, and a message for each case that failed, by case id.

    Raises:
        FileNotFoundError: if the folder of the segmentations does not exist.
        ValueError: if a segmentation would be replaced, or a decision that this package did not write.
    """
    files = files_by_case(prediction_dir)
    decision = Path(output_dir, "postprocessing.json")
    check_decision(decision, overwrite)
    check_outputs([{"id": case, "image": file} for case, file in files.items()], str(output_dir), overwrite)
    targets = {case: (file, Path(output_dir, f"{case}.nii.gz")) for case, file in files.items()}
    postprocessing.write(decision)
    sources = {case: [file] for case, file in files.items()}
    states = FileStates(sources)
    written, failed = map_cases(
        functools.partial(_apply_to_file, postprocessing=postprocessing), targets, processes, "post-processing"
    )
    problems = {**naming_files(failed, sources), **states.changed()}
    return [path for case, path in written.items() if case not in problems], problems


def check_decision(path: str | PathLike, overwrite: bool = False) -> None:
    """
    Check that a decision replaces only another one of this package.

    Raises:
        ValueError: naming the file that would be replaced.
    """
    if overwrite or not Path(path).exists():
        return
    content = json_object(path)
    versions = content.get("versions")
    if "keep_largest_component" not in content or not isinstance(versions, dict) or "mednext_monai" not in versions:
        raise ValueError(
            f"{path} exists and is not a decision of this package; choose another place, or allow it to be replaced "
            "with --overwrite true."
        )


def _apply_to_file(files: tuple[str, Path], postprocessing: Postprocessing) -> Path:
    source, target = files
    segmentation, affine = read_label(source)
    result = apply_postprocessing(segmentation, postprocessing, tuple(spacing_of(affine)))
    write_segmentation(result, target, like=source, affine=affine)
    return target


@dataclass(frozen=True)
class _Trials:
    """Measures what steps would do to the predictions; ``labels`` has classes."""

    pairs: Mapping[str, Pair]
    labels: Labels
    processes: int | None
    minimum_sizes: bool

    def sized(self, before: Sequence[Step], steps: Sequence[Step]) -> list[Step]:
        """Return the steps with their minimum sizes, if these are used, after the steps ``before``."""
        if not self.minimum_sizes:
            return list(steps)
        function = functools.partial(_largest_sizes, before=before, steps=steps)
        sizes = _map(function, self.pairs, self.processes, "measuring components").values()
        smallest = [min((size for size in column if size is not None), default=None) for column in zip(*sizes)]
        return [Step(step.classes, size) for step, size in zip(steps, smallest)]

    def dice(self, *trials: Sequence[Step]) -> list[list[Dice]]:
        """Return, for each trial, the Dice of every class in every case after its steps."""
        function = functools.partial(_dice_after, trials=trials, labels=self.labels)
        return [list(cases) for cases in zip(*_map(function, self.pairs, self.processes, "evaluating").values())]


def _decide(trials: _Trials, compare: Callable[..., int]) -> tuple[list[Step], dict[str, list[Dice]]]:
    """Return the accepted steps, and the Dice of every class in every case by trial."""
    values = tuple((trials.labels.classes or {}).values())
    joint = trials.sized([], [Step(values)])
    raw_dice, joint_dice = trials.dice([], joint)
    results = {RAW: raw_dice, JOINT: joint_dice}
    changes = [compare(raw_dice, joint_dice, value) for value in values]
    accepted = joint if max(changes) > 0 and min(changes) >= 0 else []
    if len(values) > 1:
        separate = trials.sized(accepted, [Step((value,)) for value in values])
        before = joint_dice if accepted else raw_dice
        (results[SEPARATE],) = trials.dice([*accepted, *separate])
        accepted = [*accepted, *(s for s in separate if compare(before, results[SEPARATE], s.classes[0]) > 0)]
    return accepted, results


def _map(function: Callable, pairs: Mapping[str, Pair], processes: int | None, text: str) -> dict[str, Any]:
    results, problems = map_cases(function, pairs, processes, text)
    _refuse(naming_files(problems, pairs))
    return results


def _refuse(problems: Mapping[str, str]) -> None:
    if problems:
        listed = "\n  ".join(problems.values())
        raise ValueError(f"{len(problems)} case(s) cannot be used, and a decision needs all of them:\n  {listed}")


def _with_classes(labels: Labels, pairs: Mapping[str, Pair], processes: int | None) -> Labels:
    """Return the labels with classes: if there are none, those of the files."""
    if labels.classes is not None:
        return labels
    found = sorted(set().union(*_map(_values_of_pair, pairs, processes, "reading").values()) - {0, labels.ignore})
    if not found:
        raise ValueError("the predictions and labels have no foreground: there is nothing to decide.")
    return Labels({str(value): value for value in found}, ignore=labels.ignore)


def _values_of_pair(pair: Pair) -> set[int]:
    return {int(value) for array in read_pair(pair)[:2] for value in value_counts(array)[0]}


def _largest_sizes(pair: Pair, before: Sequence[Step], steps: Sequence[Step]) -> list[float | None]:
    """Return the size in mm³ of the largest component of each step, ``None`` if there is none."""
    prediction, _, spacing = read_pair(pair)
    volume = _voxel_volume(spacing)
    for step in before:
        _keep_largest(prediction, step, volume)
    return [_keep_largest(prediction, step, volume) for step in steps]


def _dice_after(pair: Pair, trials: Sequence[Sequence[Step]], labels: Labels) -> list[Dice]:
    prediction, reference, spacing = read_pair(pair)
    for path, array in zip(pair, (prediction, reference)):
        refuse_unexpected(path, array, labels)
    results = []
    for steps in trials:
        segmentation = prediction.copy()
        for step in steps:
            _keep_largest(segmentation, step, _voxel_volume(spacing))
        results.append(_dice(segmentation, reference, list((labels.classes or {}).values()), labels.ignore))
    return results


def _dice(prediction: np.ndarray, reference: np.ndarray, classes: Sequence[int], ignore: int | None) -> Dice:
    counted = prediction.ravel(), reference.ravel()
    if ignore is not None:
        counted = tuple(array[counted[1] != ignore] for array in counted)  # type: ignore[assignment]
    length = max(classes) + 1
    predicted, present = (_counts(array, length) for array in counted)
    hits = _counts(counted[0][counted[0] == counted[1]], length)
    sums = predicted + present
    return {c: float(2.0 * hits[c] / sums[c]) if sums[c] else math.nan for c in classes}


def _counts(values: np.ndarray, length: int) -> np.ndarray:
    """Return how often each of 0 ... ``length - 1`` occurs; ``bincount`` of a part needs 8 bytes per value."""
    parts = np.array_split(values, values.size // 2**22 + 1)
    return np.sum([np.bincount(part, minlength=length) for part in parts], axis=0)


def _keep_largest(segmentation: np.ndarray, step: Step, voxel_volume: float) -> float | None:
    """Remove components in place, and return the size of the largest one in mm³, ``None`` if there is none."""
    mask = np.isin(segmentation, step.classes)
    boxes = ndimage.find_objects(mask.view(np.int8))
    if not boxes:
        return None
    components, count = ndimage.label(mask[boxes[0]])  # connected by faces
    sizes = _counts(components.ravel(), count + 1)
    sizes[0] = 0
    removed = (sizes > 0) & (sizes != sizes.max())
    if step.minimum_size_mm3 is not None:
        removed &= sizes * voxel_volume < step.minimum_size_mm3
    if removed.any():
        segmentation[boxes[0]][removed[components]] = 0
    return float(sizes.max() * voxel_volume)


def _voxel_volume(spacing: Sequence[float] | None) -> float:
    return 1.0 if spacing is None else float(np.prod(spacing, dtype=np.float64))


def _compare(before: list[Dice], after: list[Dice], value: int, strict: bool, count_absent_as_one: bool) -> int:
    """Return 1 if the mean Dice of a class rises, -1 if it falls, else 0; no value neither rises nor falls."""
    old, new = (_values(cases, value, count_absent_as_one) for cases in (before, after))
    if strict:
        both = ~(np.isnan(old) | np.isnan(new))
        old, new = old[both], new[both]
    means = _mean(old), _mean(new)
    return int(means[1] > means[0]) - int(means[1] < means[0])


def _values(cases: list[Dice], value: int, count_absent_as_one: bool) -> np.ndarray:
    values = np.array([case[value] for case in cases], dtype=np.float64)
    return np.nan_to_num(values, nan=1.0) if count_absent_as_one else values


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else math.nan


def _means(results: Mapping[str, list[Dice]], value: int, count_absent_as_one: bool) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {}
    for name, cases in results.items():
        values = _values(cases, value, count_absent_as_one)
        found[name] = None if np.isnan(values).all() else _mean(values)
        found[f"{name}_values"] = int(np.count_nonzero(~np.isnan(values)))
    return found


def _original_steps(content: Mapping[str, Any]) -> list[Step]:
    """Return the steps of the original's file: ``for_which_classes`` such as ``[[1, 2], 2]``, sizes as Python text."""
    text = re.sub(r"np\.float64\(([^)]*)\)", r"\1", content.get("min_valid_object_sizes") or "None")  # NumPy 2's repr
    sizes = ast.literal_eval(text) or {}
    groups = content["for_which_classes"]
    keys = [tuple(group) if isinstance(group, list) else group for group in groups]
    return [Step(key if isinstance(key, tuple) else (key,), sizes[key] if sizes else None) for key in keys]


def _classes_text(step: Step) -> str:
    minimum = "" if step.minimum_size_mm3 is None else f", and all of at least {step.minimum_size_mm3:g} mm³"
    kind = "class" if len(step.classes) == 1 else "the joined classes"
    return f"{kind} {', '.join(map(str, step.classes))}{minimum}"


def _shown(value: float | int | None) -> str:
    return "no value" if value is None else f"{value:.4f}"
