"""What the folders of a bundle hold about its folds: curves, tables, segmentations, and the settings of checkpoints."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..data.dataset import read_dataset
from ..data.io import image_paths
from ..data.picture_files import PICTURES
from ..files import read_json

__all__ = ["Part", "parts_of"]

METRICS = ("dice", "surface_dice")  # of which the report has figures
STATISTICS = (*METRICS, "hd95_mm", "volume_difference_ml")  # of which it has means
WEIGHTS = ("model.pt", "model_best.pt", "last.pt")  # in the order in which they are looked for


@dataclass(frozen=True)
class Part:
    """
    A fold, or all folds together.

    Attributes:
        title: heading in the report.
        folder: its curves and tables.
        models: folder of its checkpoints, ``None`` for all folds together.
    """

    title: str
    folder: Path
    models: Path | None

    def rows(self) -> list[dict[str, str]]:
        """
        Return the rows of ``metrics.csv``, none if there is no such file of this package.

        Raises:
            ValueError: naming the file and the line, if a cell is missing or a metric is not a number.
        """
        file = self.folder / "metrics.csv"
        if not file.is_file():
            return []
        try:
            with open(file, newline="", encoding="utf-8") as opened:
                rows = list(csv.DictReader(opened, strict=True))
        except (OSError, ValueError, csv.Error) as error:
            raise ValueError(f"{file}: cannot be read as a table: {error}.") from error
        if not rows or not {"case", "class", *METRICS} <= set(rows[0]):
            return []
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not all(_is_number(row[name]) for name in METRICS):
                raise ValueError(
                    f"{file}: line {line} is damaged: it must have {len(rows[0])} cells, with numbers or nothing in "
                    f"{' and '.join(METRICS)}."
                )
        return rows

    def statistics(self) -> dict[str, Any]:
        """
        Return the content of ``metrics.json``, or nothing if there is no such file.

        Raises:
            ValueError: naming the file, if it is not one of this package.
        """
        file = self.folder / "metrics.json"
        content = read_json(file) if file.is_file() else {}
        if not isinstance(content, dict) or not _are_statistics(content):
            raise ValueError(f"{file}: is damaged, or not a table of mednext evaluate; evaluate again, or remove it.")
        return content

    def has_curves(self) -> bool:
        """Return whether a training has written curves."""
        return any(self.folder.glob("events.out.tfevents.*"))

    def settings(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint of the fold and the settings that it carries, or ``None``."""
        from ..weights import read_settings

        for name in WEIGHTS if self.models is not None else ():
            file = Path(str(self.models), name)
            found = read_settings(file) if file.is_file() else None
            if found is not None:
                return file, found
        return None

    def chosen_cases(self) -> dict[str, str]:
        """Return best, median and worst case by the mean Dice over classes, under these names; fewer if there are."""
        dice: dict[str, list[float]] = {}
        for row in self.rows():
            dice.setdefault(row["case"], []).append(number(row["dice"]))
        means = {case: _mean(values) for case, values in dice.items()}
        ranked = sorted((case for case in means if math.isfinite(means[case])), key=lambda case: -means[case])
        places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
        chosen: dict[str, str] = {}
        for name, place in places.items():
            if ranked and ranked[place] not in chosen.values():
                chosen[name] = ranked[place]
        return chosen

    def files(self, case: str, dataset_dir: str | PathLike | None) -> tuple[str, str, str]:
        """
        Return image, segmentation and label of a case.

        Args:
            case: case id.
            dataset_dir: the data set. ``None``: that of ``metrics.json``.

        Raises:
            ValueError: in one sentence, what is not there.
        """
        written = self.folder if self.folder.name == "postprocessed" else self.folder / "predictions"
        named = [written / f"{case}{ending}" for ending in (".nii.gz", *PICTURES)]
        prediction = next((path for path in named if path.is_file()), named[0])
        if not prediction.is_file():
            raise ValueError(f"there is no {prediction}; mednext evaluate --save_predictions true writes it.")
        folder = dataset_dir or self.statistics().get("settings", {}).get("dataset_dir")
        if folder is None:
            raise ValueError("metrics.json does not name a data set; --dataset_dir does.")
        found = [item for item in read_dataset(str(folder)).cases if item["id"] == case]
        if not found:
            raise ValueError(f"the data set {folder} has no case {case}.")
        return str(image_paths(found[0]["image"])[0]), str(prediction), str(found[0]["label"])


def parts_of(run_dir: str | PathLike) -> list[Part]:
    """
    Return what a bundle has to report: all folds together, if they were cross-validated, then every fold.

    Args:
        run_dir: the bundle's folder, with ``models`` and ``eval``.

    Raises:
        ValueError: if it is not such a folder, or nothing was trained or evaluated there.
    """
    models, tables = Path(run_dir, "models"), Path(run_dir, "eval")
    if not models.is_dir() and not tables.is_dir():
        raise ValueError(f"RUN_DIR: {run_dir} must be the folder of a bundle, it has neither models/ nor eval/.")
    together = tables / "cross_validation"
    found = [Part("All folds", together, None), Part("All folds, post-processed", together / "postprocessed", None)]
    names = {folder.name for parent in (models, tables) for folder in parent.glob("fold_*") if folder.is_dir()}
    found.append(Part("Fold 0", tables, models))
    found += [Part(f"Fold {name.removeprefix('fold_')}", tables / name, models / name) for name in sorted(names)]
    parts = [part for part in found if part.has_curves() or part.rows() or part.settings()]
    if not parts:
        raise ValueError(f"RUN_DIR: {run_dir} has no training and no evaluation to report.")
    return parts


def number(text: str) -> float:
    """Return the number in a cell of a table; an empty one is NaN."""
    return float(text) if text else math.nan


def _are_statistics(content: Mapping[str, Any]) -> bool:
    """Return whether what the report shows of ``metrics.json`` has the types that an evaluation writes."""
    settings, worst = content.get("settings", {}), content.get("worst_cases", [])
    groups = [content.get(key, {}) for key in ("classes", "regions", "versions")]
    if not isinstance(settings, dict) or not isinstance(worst, list) or not all(isinstance(g, dict) for g in groups):
        return False
    classes, ignored = settings.get("classes", {}), settings.get("ignore_label")
    if not isinstance(classes, dict) or not all(isinstance(v, (int, type(None))) for v in (ignored, *classes.values())):
        return False
    if not isinstance(settings.get("dataset_dir", ""), str) or not all(isinstance(row, dict) for row in worst):
        return False
    numbers: list[tuple[dict, tuple[str, ...]]] = [(row, ("dice", "hd95_mm")) for row in worst]
    for metrics in (entry for group in groups[:2] for entry in group.values()):
        if not isinstance(metrics, dict) or not all(isinstance(metrics.get(key), dict) for key in STATISTICS):
            return False
        numbers += [(metrics["dice"], ("mean", "sd", "median")), *((metrics[key], ("mean",)) for key in STATISTICS)]
        if "values" not in metrics["dice"] or "cases" not in content:
            return False
    texts = [row.get(key) for row in worst for key in ("case", "class", "note")]
    shown = [values.get(name, "") for values, names in numbers for name in names]
    return all(isinstance(v, (int, float, type(None))) for v in shown) and all(isinstance(v, str) for v in texts)


def _is_number(text: str) -> bool:
    try:
        return not math.isinf(number(text))
    except ValueError:
        return False


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else math.nan
