"""``mednext cross-validate``: all folds of a bundle, one table of all cases, and the post-processing chosen from them.

Training and evaluation are ``mednext train`` and ``mednext evaluate``, which are printed and run one after another.
What a fold has written is found by its files, so that the same command continues after an interruption.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_path, read_json
from ..options import literal
from .commands import WORKFLOWS, Misuse, _keys, _parse, _split, _Typed, run_workflow

if TYPE_CHECKING:
    from ..evaluation import Labels

__all__ = ["cross_validate"]

WORKFLOW = WORKFLOWS["cross-validate"]
FOLDER = "cross_validation"  # in the folder of the tables of fold 0
DECISION = "postprocessing.json"


@dataclass(frozen=True)
class Fold:
    """A fold: its weights, the folder of its tables, its validation cases, and whether their windows are mirrored."""

    index: int
    weights: Path
    output_dir: Path
    cases: list[dict]
    mirror: bool

    @property
    def is_trained(self) -> bool:
        """Whether the training has ended."""
        from ..weights.released import is_trained

        return is_trained(self.weights)

    @property
    def predictions(self) -> dict[str, Path]:
        """The segmentations of the validation cases, by case id."""
        from ..data.io import result_ending

        folder = self.output_dir / "predictions"
        return {case["id"]: folder / f"{case['id']}{result_ending(case['image'])}" for case in self.cases}

    def settings(self) -> dict[str, Any]:
        """Return the settings of its evaluation, or nothing if there is none."""
        try:
            settings = read_json(self.output_dir / "metrics.json")["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def lacks(self, any_age: bool = False) -> str:
        """Return what is missing of an evaluation of the weights with segmentations, or an empty text."""
        settings = self.settings()
        if not settings:
            return "it is not evaluated"
        if os.path.realpath(str(settings.get("checkpoint"))) != os.path.realpath(self.weights):
            return f"{settings.get('checkpoint')} was evaluated, not {self.weights}"
        if not settings.get("save_predictions"):
            return "its segmentations are not saved"
        if settings.get("mirror") != self.mirror:
            return f"it was evaluated with mirror {settings.get('mirror')}"
        missing = [str(file) for file in self.predictions.values() if not file.is_file()]
        if missing:
            return f"there is no {missing[0]}"
        older = self.weights.stat().st_mtime > (self.output_dir / "metrics.json").stat().st_mtime
        return "its weights are newer than its evaluation" if older and not any_age else ""


def cross_validate(arguments: Sequence[str]) -> int:
    """
    Run the command as typed after ``mednext cross-validate``, and return its exit status.

    Raises:
        Misuse: if an argument is missing or an option does not exist.
        ValueError: if the value of an option is not allowed, a case is validated by two folds, or, with
            ``--collect_only``, a fold is not evaluated.
    """
    positional, given = _split(arguments)
    chosen, collect_only, given = _own_options(given)
    typed = _parse(WORKFLOW, [*positional, *_typed_again(given)])
    folds = _folds(typed, chosen)
    if collect_only:
        lacking = {fold.index: fold.lacks(any_age=True) for fold in folds}
        problems = [f"fold {index}: {lack}" for index, lack in lacking.items() if lack]
        if problems:
            raise ValueError(
                f"{'; '.join(problems)}. To write what is missing: mednext evaluate "
                f"{shlex.quote(str(typed.bundle))} --fold {next(i for i, lack in lacking.items() if lack)} "
                "--save_predictions true"
            )
    for fold in folds if not collect_only else ():
        status = _complete(fold, typed, given)
        if status:
            done = ", ".join(str(other.index) for other in folds if other.is_trained) or "none"
            print(f"mednext: stopped at fold {fold.index}; folds that are trained: {done}.", file=sys.stderr)
            print("mednext: the same command continues from there.", file=sys.stderr)
            return status
    return _collect(folds, typed)


def _own_options(given: Sequence[tuple[str, list[str]]]) -> tuple[list[int] | None, bool, list[tuple[str, list[str]]]]:
    """Return the folds, whether to collect only, and the other options."""
    from ..options import parse_switch

    folds, collect_only, others = None, False, []
    for name, values in given:
        if name == "folds":
            texts = [text for value in values for text in value.strip("[]").replace(",", " ").split()]
            if not texts or not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
                raise ValueError(f"--folds must be different integers such as 0 1 2, got {' '.join(values) or 'none'}.")
            folds = [int(text) for text in texts]
        elif name == "collect_only":
            collect_only = parse_switch("--collect_only", values[0]) if values else True
        elif name in WORKFLOW.hidden:
            raise Misuse(f"--{name} is set by cross-validate itself; use mednext train or mednext evaluate for it.")
        else:
            others.append((name, values))
    return folds, collect_only, others


def _typed_again(given: Sequence[tuple[str, list[str]]]) -> list[str]:
    return [text for name, values in given for text in (f"--{name}", *values)]


def _folds(typed: _Typed, chosen: Sequence[int] | None) -> list[Fold]:
    """Return the folds, whose validation cases must not overlap."""
    from ..data import fold_count, training_cases

    first = _settings(typed, 0)
    source = {"dataset_dir": first["dataset_dir"], "splits": first["splits"]}
    folds = []
    for index in range(fold_count(**source)) if chosen is None else chosen:
        folder = f"fold_{index}" if index else ""
        folds.append(
            Fold(
                index=index,
                weights=Path(first["ckpt_dir"], folder, "model.pt"),
                output_dir=Path(first["output_dir"], folder),
                cases=training_cases(fold=index, section="validation", **source),
                mirror=first["mirror"],
            )
        )
    twice = [case for case, count in Counter(case["id"] for fold in folds for case in fold.cases).items() if count > 1]
    if twice:
        raise ValueError(f"the case {twice[0]} is validated by several folds; choose some that have no case in common.")
    return folds


def _settings(typed: _Typed, fold: int) -> dict[str, Any]:
    """Return the folders, folds and options of the evaluation, as the configs and what was typed determine them."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(typed.bundle / "configs" / f"{name}.json") for name in WORKFLOW.configs] + typed.overlays)
    typed_options = {key: literal(value) for key, value in typed.options.items()}
    parser.update({**typed_options, "bundle_root": literal(str(typed.bundle)), "fold": fold})
    keys = ("dataset_dir", "splits", "ckpt_dir", "output_dir", "tolerance", "format")
    found = {key: parser.get_parsed_content(key) for key in keys}
    in_voxels = parser.get_parsed_content("measures_in_voxels")
    return {**found, "mirror": parser.get_parsed_content("evaluated::mirror"), "in_voxels": in_voxels}


def _complete(fold: Fold, typed: _Typed, given: Sequence[tuple[str, list[str]]]) -> int:
    """Train and evaluate a fold as far as that is not done, and return the exit status."""
    only_evaluated = set(_keys(typed.bundle, WORKFLOW)) - set(_keys(typed.bundle, WORKFLOWS["train"]))
    common = ["--fold", str(fold.index)]
    if _settings(typed, 1)["output_dir"] == _settings(typed, 0)["output_dir"]:  # stated, without the fold
        given = [(name, values) for name, values in given if name != "output_dir"]
        common += ["--output_dir", str(fold.output_dir)]
    if not fold.is_trained:
        training = [(name, values) for name, values in given if name.split("::")[0] not in only_evaluated]
        resume = ["--resume", "true"] if (fold.weights.parent / "last.pt").is_file() else []
        status = _run("train", typed, [*_typed_again(training), *common, *resume])
        if status:
            return status
    if not fold.lacks():
        print(f"fold {fold.index} is trained and evaluated", flush=True)
        return 0
    return _run("evaluate", typed, [*_typed_again(given), *common, "--save_predictions", "true"])


def _run(name: str, typed: _Typed, options: Sequence[str]) -> int:
    command = [str(typed.bundle), *options]
    print(f"$ {shlex.join(['mednext', name, *command])}", flush=True)
    return run_workflow(name, command)


def _collect(folds: Sequence[Fold], typed: _Typed) -> int:
    """Evaluate the segmentations of all folds, find the post-processing and apply it; return the exit status."""
    from .. import evaluation

    settings = _settings(typed, 0)
    folder = Path(settings["output_dir"], FOLDER)
    predictions, postprocessed = folder / "predictions", folder / "postprocessed"
    _copy(folds, predictions)
    labels = _labels(folds)
    references = {case["id"]: case["label"] for fold in folds for case in fold.cases}
    source = {
        "dataset_dir": str(settings["dataset_dir"]),
        "folds": [fold.index for fold in folds],
        "checkpoints": [str(fold.weights) for fold in folds],
    }

    def write_tables(segmentations: Path, output_dir: Path) -> None:
        found = evaluation.evaluate_folder(
            segmentations, references, labels, settings["tolerance"], settings["in_voxels"]
        )
        found = replace(found, settings={**found.settings, **source})
        evaluation.finish_evaluation(found, output_dir, settings["format"])

    print(f"\nAll {len(references)} cases of {len(folds)} folds, as segmented:\n", flush=True)
    write_tables(predictions, folder)
    decision = evaluation.find_postprocessing(predictions, references, labels)
    decision.write(folder / DECISION)
    print(f"\nPost-processing, by mean Dice:\n\n{decision.describe()}\n\nwrote {folder / DECISION}", flush=True)
    evaluation.apply_to_folder(predictions, postprocessed, decision)
    print("\nThe cases after it:\n", flush=True)
    write_tables(postprocessed, postprocessed)
    print(_next_commands(folds, typed, folder / DECISION))
    return 0


def _labels(folds: Sequence[Fold]) -> Labels:
    """Return what was evaluated, in which the folds must agree."""
    from ..evaluation import Labels

    keys = ("classes", "regions", "ignore_label", "only_regions")
    found = [{key: fold.settings().get(key) for key in keys} for fold in folds]
    for fold, other in zip(folds, found):
        if other != found[0]:
            raise ValueError(
                f"folds {folds[0].index} and {fold.index} were evaluated with different classes or regions."
            )
    classes, regions, ignore, only_regions = found[0].values()
    try:
        return Labels(classes, regions or {}, ignore, bool(only_regions))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folds[0].output_dir / 'metrics.json'}: the settings are damaged: {error}") from error


def _copy(folds: Sequence[Fold], target: Path) -> None:
    """Copy the segmentations of all folds into one folder, and remove those of an earlier run from it."""
    from ..data import check_outputs
    from ..data.io import is_ours

    files = {case: file for fold in folds for case, file in fold.predictions.items()}
    check_outputs([{"id": case, "image": str(file)} for case, file in files.items()], str(target))
    for stale in target.iterdir() if target.is_dir() else ():
        if stale.name not in {file.name for file in files.values()} and is_ours(stale):
            stale.unlink()
    for file in files.values():
        with atomic_path(target / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _next_commands(folds: Sequence[Fold], typed: _Typed, decision: str | PathLike) -> str:
    """Return the command that predicts with all folds, and the one that post-processes what is already predicted."""
    bundle, file = shlex.quote(str(typed.bundle)), shlex.quote(str(decision))
    indices = " ".join(str(fold.index) for fold in folds)
    return (
        f"\nTo segment new images with all folds, post-processed results in OUTPUT/postprocessed:\n"
        f"  mednext predict {bundle} IMAGES OUTPUT --folds {indices} --postprocess {file}\n"
        f"To post-process a folder of segmentations:\n"
        f"  mednext apply-postprocessing SEGMENTATIONS OUTPUT --decision {file}"
    )
