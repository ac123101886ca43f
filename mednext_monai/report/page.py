"""One self-contained HTML page about a run: curves, box plots, three cases, settings, versions and hardware."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from ..environment import hardware, package_versions
from ..files import write_atomically
from ..pages import inline_png, lead, page, table
from ..pictures import save_overlay
from .figures import box_plot, line_chart
from .run import Part, number, parts_of

__all__ = ["write_report"]

WIDTH = 840  # pixels of an overlay
MARK = "<!-- mednext report -->"  # by which a page of this package is recognized
STEPS = ("learning_rate", "gradient_norm")  # curves with an axis of their own
MAX_LINES = 6  # curves of classes in one drawing, each with a color of its own
PLOTS = {"dice": "Dice", "surface_dice": "surface Dice"}
LEFT_OUT = {"training_ids", "versions", "hardware"}  # of the settings: hashes, and what has tables of its own


def write_report(
    run_dir: str | PathLike,
    output: str | PathLike | None = None,
    dataset_dir: str | PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Write a page about everything that was trained and evaluated in a bundle.

    What is missing is left out with a sentence: segmentations that were not saved, a data set that is not there.

    Args:
        run_dir: the bundle's folder, with ``models`` and ``eval``.
        output: the ``.html`` file. Defaults to ``None``: ``eval/report.html`` of the bundle.
        dataset_dir: the data set, for the pictures. Defaults to ``None``: that of the evaluation.
        overwrite: whether a file may be replaced that this package did not write. Defaults to ``False``.

    Returns:
        the path of the page.

    Raises:
        ValueError: if there is nothing to report, or a file of others would be replaced.
    """
    target = Path(run_dir, "eval", "report.html") if output is None else Path(output)
    if target.is_file() and not overwrite and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"output: {target} exists and is not a report; name another file, or add --overwrite.")
    parts = parts_of(run_dir)
    name = Path(run_dir).resolve().name
    sections = [MARK, lead(f"{len(parts)} part{'s' * (len(parts) > 1)}: {', '.join(part.title for part in parts)}")]
    for part in parts:
        sections += _part(part, dataset_dir)
    sections += ["<h2>This page was written with</h2>", _settings_table({**package_versions(), **hardware()})]
    write_atomically(target, page(f"Report: {name}", f"MedNeXt run: {name}", sections).encode())
    return target


def _part(part: Part, dataset_dir: str | PathLike | None) -> list[str]:
    """Return the sections of a fold, or of all folds together."""
    sections = [f"<h2>{escape(part.title)}</h2>"]
    if part.models is not None:
        sections += _curves(part)
    rows = part.rows()
    if rows:
        sections += [*_tables(part), *_pictures(part, dataset_dir)]
    else:
        sections.append(lead("There is no evaluation: mednext evaluate writes one."))
    return [*sections, *_settings(part)]


def _curves(part: Part) -> list[str]:
    """Draw losses, and the metrics of the validations, over the epochs."""
    from ..curves import Curves  # slow to import

    if not part.has_curves():
        return [lead("There are no curves: no training has written event files here.")]
    curves = Curves(part.folder)
    tags = curves.tags()
    # A resumed training repeats the steps after its checkpoint: the last one counts.
    points = {tag: sorted({event.step: event.value for event in curves(tag)}.items()) for tag in tags}
    epochs = {tag: values for tag, values in points.items() if tag != "train_loss"}
    losses = {tag: values for tag, values in epochs.items() if "loss" in tag}
    steps = {tag: epochs.pop(tag) for tag in STEPS if tag in epochs}
    others = {tag: values for tag, values in epochs.items() if "loss" not in tag and "/" not in tag}
    by_class: dict[str, dict] = {}
    for tag in (tag for tag in epochs if "/" in tag):
        metric, name = tag.split("/", 1)
        by_class.setdefault(metric, {})[name] = epochs[tag]
    charts = [line_chart("loss", "epoch", losses)] if losses else []
    if not losses and "train_loss" in points:
        charts.append(line_chart("loss", "iteration", {"train_loss": points["train_loss"]}))
    if others:
        charts.append(line_chart("validation", "epoch", others))
    charts += [line_chart(metric, "epoch", lines) for metric, lines in by_class.items() if len(lines) <= MAX_LINES]
    charts += [line_chart(tag.replace("_", " "), "epoch", {tag: values}) for tag, values in steps.items()]
    return ["<h3>Training</h3>", *charts]


def _tables(part: Part) -> list[str]:
    """Return box plots, the statistics and the lowest Dice values of an evaluation."""
    groups: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in PLOTS}
    for row in part.rows():
        for metric, by_class in groups.items():
            by_class.setdefault(row["class"], {})[row["case"]] = number(row[metric])
    found = part.statistics()
    settings = found.get("settings", {})
    unit = f"{settings.get('surface_dice_tolerance', '?')} {settings.get('surface_dice_unit', '')}".strip()
    titles = {"dice": "Dice", "surface_dice": f"surface Dice, tolerance {unit}"}
    plots = [box_plot(titles[metric], by_class) for metric, by_class in groups.items()]
    heads = ("", "Dice", "sd", "median", "surface Dice", "HD95, mm", "volume difference, ml", "values")
    lines = []
    for kind in ("classes", "regions"):
        for name, metrics in found.get(kind, {}).items():
            dice, others = metrics["dice"], ("surface_dice", "hd95_mm", "volume_difference_ml")
            shown = [dice["mean"], dice["sd"], dice["median"], *(metrics[key]["mean"] for key in others)]
            lines.append([name, *map(_shown, shown), f"{dice['values']} of {found['cases']}"])
    worst = [
        [row["case"], row["class"], _shown(row["dice"]), _shown(row["hd95_mm"]), row["note"]]
        for row in found.get("worst_cases", [])
    ]
    return [
        "<h3>Evaluation</h3>",
        *plots,
        lead("A box has the quartiles and the median; each point is a case."),
        table(heads, lines, range(1, 8)),
        "<h3>Lowest Dice</h3>",
        table(("case", "class", "Dice", "HD95, mm", ""), worst, (2, 3)),
    ]


def _pictures(part: Part, dataset_dir: str | PathLike | None) -> list[str]:
    """Draw best, median and worst case, or say why not."""
    sections = ["<h3>Cases</h3>"]
    names = {value: name for name, value in part.statistics().get("settings", {}).get("classes", {}).items()}
    ignored = part.statistics().get("settings", {}).get("ignore_label")
    if ignored is not None:
        names[ignored] = "not annotated"
    with tempfile.TemporaryDirectory(prefix="mednext.") as folder:
        for place, case in part.chosen_cases().items():
            try:
                image, prediction, label = part.files(case, dataset_dir)
                file = save_overlay(image, prediction, Path(folder, f"{place}.png"), label, names, WIDTH)
            except (ValueError, OSError) as error:
                sections.append(lead(f"The picture of the {place} case is left out: {error}"))
                continue
            content = file.read_bytes()
            with Image.open(io.BytesIO(content)) as picture:
                inline = inline_png(content, picture.size, f"{place} case: {case}")
            sections.append(f"<figure>{inline}<figcaption>{escape(f'{place} case: {case}')}</figcaption></figure>")
    return sections


def _settings(part: Part) -> list[str]:
    """Return what the checkpoint carries, and the versions of the evaluation."""
    sections: list[str] = []
    found = part.settings()
    if found is not None:
        file, settings = found
        sections += [f"<h3>Settings of {escape(file.name)}</h3>"]
        sections.append(_settings_table({key: value for key, value in settings.items() if key not in LEFT_OUT}))
        trained = {**settings.get("versions", {}), **settings.get("hardware", {})}
        if trained:
            sections += ["<h3>Trained with</h3>", _settings_table(trained)]
    elif part.models is not None:
        sections.append(lead(f"No checkpoint in {part.models} says how it was trained."))
    evaluation = part.statistics()
    if evaluation:
        shown = {**evaluation.get("settings", {}), **evaluation.get("versions", {})}
        sections.append(f"<details><summary>Evaluated with</summary>{_settings_table(shown)}</details>")
    return sections


def _settings_table(settings: Mapping[str, Any]) -> str:
    return table(("", ""), ([key, "–" if value is None else value] for key, value in settings.items()))


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
