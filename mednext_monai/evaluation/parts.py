"""
An evaluation in parts: runs that share its cases without communication, such as the array jobs of a cluster.

Each run leaves the rows of its cases in a file of its own, ``metrics.part_<i>.json``, and then looks for the files of
the others. Since each one writes before it looks, at least one of them finds all, whatever their order. The files stay,
so that one part can be repeated. Each names the evaluation that it belongs to; rows of two evaluations are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..data.dataset import select_part
from ..data.io import image_paths
from ..environment import package_versions
from ..files import hash_file, json_object, write_atomically
from .cases import Pair, file_state, pair_cases
from .folder import Evaluation, complete_rows, refuse_nothing
from .labels import Labels
from .metrics import ClassScores

__all__ = [
    "SOURCE",
    "Part",
    "check_parts",
    "evaluation_part",
    "folder_part",
    "gather_parts",
    "missing_parts",
    "remove_other_parts",
    "write_part",
]

SOURCE = ("prediction_dir", "label_dir", "checkpoint", "fold", "dataset_dir")  # settings: what was evaluated
VERSION = 1  # of the file
FILE_NAME = re.compile(r"metrics\.part_\d+\.json")
ADVICE = "choose another output_dir, or allow it to be replaced with --overwrite true."


@dataclass(frozen=True)
class Part:
    """
    A part of an evaluation.

    Attributes:
        index: its number, from 0 to ``count - 1``.
        count: number of parts; 1 is the whole evaluation.
        cases: ids of its cases, sorted.
        evaluation: what all parts have in common, as texts by what they are about; empty if it is the only one.
    """

    index: int
    count: int
    cases: tuple[str, ...]
    evaluation: Mapping[str, str]


def evaluation_part(
    part: int,
    parts: int,
    cases: Sequence[Mapping],
    labels: Labels,
    settings: Mapping[str, Any],
    checkpoint: str | PathLike | None = None,
) -> Part:
    """
    Return a part of an evaluation.

    Args:
        part: its number, from 0 to ``parts - 1``: every ``parts``-th case, sorted by id.
        parts: number of parts.
        cases: all cases: dictionaries with ``id`` and the files ``image`` and ``label``, which count by size and time
            of modification, wherever they are.
        labels: what is evaluated.
        settings: what determines the values. The folders of the cases and the path of the checkpoint do not count.
        checkpoint: the file of the weights, which counts by its content. Defaults to ``None``: there is none.

    Raises:
        ValueError: if there is no such part, or it has no case.
    """
    if type(parts) is not int or parts < 1:
        raise ValueError(f"parts must be an integer of at least 1, got {parts!r}.")
    ordered = sorted(cases, key=lambda case: case["id"])
    own = tuple(case["id"] for case in select_part([{"id": case["id"]} for case in ordered], part, parts))
    if cases and not own:
        raise ValueError(f"parts must be at most the number of cases, {len(cases)}, got {parts}.")
    if parts == 1:
        return Part(part, parts, own, {})
    files = [
        [case["id"], [file_state(file) for key in ("image", "label") for file in _files(case, key)]] for case in ordered
    ]
    evaluation = {
        "number of parts": str(parts),
        "cases": f"{len(cases)} cases, {_hash(files)}",
        "classes and regions": _hash(_plain(labels)),
        "checkpoint": "" if checkpoint is None else hash_file(checkpoint)[1],
        **{key: str(value) for key, value in settings.items() if key not in SOURCE},
    }
    return Part(part, parts, own, evaluation)


def folder_part(
    part: int,
    parts: int,
    prediction_dir: str | PathLike,
    label_dir: str | PathLike,
    labels: Labels,
    settings: Mapping[str, Any],
    allow_missing: bool = False,
) -> Part:
    """
    Return a part of an evaluation of a folder, for :py:func:`evaluate_folder`.

    Args:
        part, parts, labels, settings: see :py:func:`evaluation_part`.
        prediction_dir, label_dir, allow_missing: see :py:func:`evaluate_folder`. A case that is in one of the folders
            only belongs to a part, too, which reports it.

    Raises:
        FileNotFoundError, ValueError: as for these two.
    """
    pairs, problems = pair_cases(prediction_dir, label_dir, allow_missing)
    cases = [{"id": case, "image": pair.prediction, "label": pair.reference} for case, pair in pairs.items()]
    return evaluation_part(part, parts, [*cases, *({"id": case} for case in problems)], labels, settings)


def _part_file(output_dir: str | PathLike, index: int) -> Path:
    """Return the file of the rows of a part."""
    return Path(output_dir, f"metrics.part_{index}.json")


def check_parts(output_dir: str | PathLike, part: Part, overwrite: bool = False) -> None:
    """
    Check that there are no parts of another evaluation, which would be replaced.

    Args:
        output_dir: folder of the tables.
        part: a part of this evaluation.
        overwrite: whether they may be replaced. Defaults to ``False``.

    Raises:
        ValueError: naming such a file and what differs.
    """
    if part.count == 1 or overwrite:
        return
    for file in _part_files(output_dir):
        difference = _difference(_read(file), part)
        if difference:
            raise ValueError(f"output_dir: {file} belongs to another evaluation ({difference}); {ADVICE}")


def write_part(evaluation: Evaluation, part: Part, output_dir: str | PathLike, overwrite: bool = False) -> Path:
    """
    Write the rows of a part, atomically.

    Args:
        evaluation: the evaluation of its cases; its labels may lack the classes.
        part: the part.
        output_dir: folder of the tables.
        overwrite: whether a part of another evaluation may be replaced. Defaults to ``False``.

    Returns:
        the file.

    Raises:
        ValueError: if another evaluation has written this part in the meantime.
    """
    file = _part_file(output_dir, part.index)
    if file.exists() and not overwrite:
        check_parts(output_dir, part)
    rows: dict[str, list[dict[str, Any]]] = {case: [] for case in evaluation.files}
    for row in evaluation.scores:
        values = asdict(row)
        rows[values.pop("case")].append({key: None if _is_nan(value) else value for key, value in values.items()})
    content = {
        "part": part.index,
        "evaluation": dict(part.evaluation),
        "settings": dict(evaluation.settings),
        "labels": _plain(evaluation.labels),
        "cases": {
            case: {**pair._asdict(), "voxels": evaluation.voxels.get(case), "rows": rows[case]}
            for case, pair in evaluation.files.items()
        },
        "problems": dict(evaluation.problems),
        "versions": package_versions(),
        "format": VERSION,
    }
    write_atomically(file, json.dumps(content, indent=1, allow_nan=False).encode())
    return file


def missing_parts(part: Part, output_dir: str | PathLike) -> dict[int, str]:
    """Return the parts without rows, each with the file of another evaluation in its place, or an empty text."""
    return _read_parts(part, output_dir)[1]


def gather_parts(part: Part, output_dir: str | PathLike, labels: Labels) -> Evaluation | None:
    """
    Return the whole evaluation if the rows of all parts are there, otherwise ``None``.

    Args:
        part: a part that has been written, whose settings are those of the whole.
        output_dir: folder of the tables.
        labels: what is evaluated; the classes are those found in all parts if none are given.

    Raises:
        ValueError: if no case of any part could be evaluated.
    """
    contents, missing = _read_parts(part, output_dir)
    return None if missing else _joined(contents, contents[part.index]["settings"], labels)


def _read_parts(part: Part, output_dir: str | PathLike) -> tuple[list[dict[str, Any]], dict[int, str]]:
    contents: list[dict[str, Any]] = []
    missing: dict[int, str] = {}
    for index in range(part.count):
        file = _part_file(output_dir, index)
        content = _read(file)
        if _difference(content, part):
            missing[index] = str(file) if file.exists() else ""
        else:
            contents.append(content)
    return contents, missing


def remove_other_parts(part: Part, output_dir: str | PathLike) -> None:
    """Remove what is left of other evaluations, such as one of more parts."""
    for file in _part_files(output_dir):
        if _difference(_read(file), part):
            file.unlink(missing_ok=True)


def _part_files(output_dir: str | PathLike) -> list[Path]:
    return sorted(file for file in Path(output_dir).glob("metrics.part_*.json") if FILE_NAME.fullmatch(file.name))


def _joined(contents: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], labels: Labels) -> Evaluation:
    cases = dict(sorted((name, case) for content in contents for name, case in content["cases"].items()))
    problems = dict(sorted(item for content in contents for item in content["problems"].items()))
    refuse_nothing(cases, problems)
    scores = {name: (case["voxels"], [_scores(name, row) for row in case["rows"]]) for name, case in cases.items()}
    labels, rows = complete_rows(scores, labels)
    return Evaluation(
        scores=rows,
        labels=labels,
        files={name: Pair(case["prediction"], case["reference"]) for name, case in cases.items()},
        problems=problems,
        settings=settings,
        voxels={name: case["voxels"] for name, case in cases.items()},
    )


def _scores(case: str, row: Mapping[str, Any]) -> ClassScores:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
    return ClassScores(case, **values)


def _read(file: Path) -> dict[str, Any]:
    """Return the content of the file of a part; nothing if it is not there or not one."""
    content = json_object(file)
    return content if content.get("format") == VERSION and "evaluation" in content else {}


def _difference(content: Mapping[str, Any], part: Part) -> str:
    """Return in what a part's file differs from the evaluation of a part, or an empty text."""
    found = content.get("evaluation")
    if not isinstance(found, dict):
        return "not written by this version of the package"
    different = [key for key, value in part.evaluation.items() if found.get(key) != value]
    return f"other {', '.join(different)}" if different else ""


def _files(case: Mapping, key: str) -> list[str]:
    return [str(path) for path in image_paths(case[key])] if case.get(key) else []


def _plain(labels: Labels) -> dict[str, Any]:
    classes = None if labels.classes is None else dict(labels.classes)
    regions = {name: list(values) for name, values in labels.regions.items()}
    return {"classes": classes, "regions": regions, "ignore": labels.ignore, "only_regions": labels.only_regions}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
