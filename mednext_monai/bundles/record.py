"""What the record of released weights says in a bundle: metadata, page, learning curve, and the default classes.

The record is ``models/model.json``, which ``mednext bundle release`` writes. ``mednext bundle build`` applies it to
what it builds, so that none of this is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..options import literal, plain
from .label_table import label_table
from .library import LABEL_TABLE

__all__ = [
    "CURVE",
    "LICENSE",
    "METRICS",
    "OF_WEIGHTS",
    "apply_record",
    "label_values",
    "replace_weights_section",
    "spacing_text",
    "task_fields",
]

CURVE, LICENSE = "docs/learning_curve.svg", "docs/data_license.txt"
PAGE, METADATA, CONFIGS = "docs/README.md", "configs/metadata.json", ("configs/train.json", "configs/inference.json")
BEGIN, END = "<!-- weights -->\n", "<!-- end of weights -->\n"
METRICS = ("dice", "surface_dice", "hd95_mm")
OF_WEIGHTS = ("eval_metrics", "weights")  # fields of the metadata


def apply_record(files: Mapping[str, bytes], record: Mapping[str, Any]) -> dict[str, bytes]:
    """
    Return the files of a bundle with what a record says about its weights.

    Args:
        files: content of the page, the metadata, ``train.json`` and ``inference.json`` by path; others are kept.
        record: the record.
    """
    from ..report.figures import line_chart, stand_alone

    task, data = record["task"], record["data"]
    metadata = json.loads(files[METADATA])
    source = f"{data['name']}, {data['training_cases']} training cases of fold {data['fold']}"
    stated = {
        **task_fields(metadata, data["name"], task),
        "data_source": ", ".join(filter(None, [source, data.get("license_name")])),
        "eval_metrics": _eval_metrics(record["evaluation"]),
        "weights": {
            **{key: record[key] for key in ("sha256", "bytes", "precision", "training")},
            "data": {key: value for key, value in data.items() if key != "license"},
        },
    }
    result = {**files, METADATA: _json({**metadata, **literal(stated)})}
    if table := label_table(stated):
        result[f"models/{LABEL_TABLE}"] = table
    for name in CONFIGS:
        config = json.loads(files[name])
        released = {key: task[key] for key in ("in_channels", "out_channels")}
        config["released_task"] = released if task.get("spatial_dims", 3) == 3 else {**released, "spatial_dims": 2}
        result[name] = _json(config)
    result[PAGE] = replace_weights_section(files[PAGE].decode(), _section(record)).encode("utf-8", "replace")
    result[CURVE] = stand_alone(line_chart("training", "epoch", record["curve"])).encode()
    if data.get("license"):
        result[LICENSE] = data["license"].encode()
    return result


def task_fields(metadata: Mapping, task: str, settings: Mapping) -> dict[str, Any]:
    """
    Return the fields of a bundle's metadata that depend on channels and classes.

    Args:
        metadata: those of the bundle, with what does not depend on them.
        task: name of the task or its data set.
        settings: ``channel_names``, ``labels`` (background first), ``ignore_label`` and ``spatial_dims``, of a plan or
            a checkpoint.
    """
    from ..data.segment_codes import known_codes  # imports numpy

    channels, classes = settings["channel_names"], settings["labels"]
    channel_list, foreground = ", ".join(channels), ", ".join(classes[1:])
    image = {**metadata["network_data_format"]["inputs"]["image"]}
    image.update(modality=channel_list, num_channels=len(channels), channel_def=_numbered(channels))
    pred = {**metadata["network_data_format"]["outputs"]["pred"]}
    described = _numbered(_distinct(classes))
    stated = pred.pop("segment_codes", {})
    if plain(pred["channel_def"]) != described:  # they are of other classes
        stated = {}
    pred.update(num_channels=len(classes), channel_def=described)
    for side in (image, pred):
        side["spatial_shape"] = [side["spatial_shape"][0]] * (settings.get("spatial_dims") or 3)
    if codes := {**known_codes(classes), **stated}:
        pred["segment_codes"] = codes
    return {
        "task": f"Segmentation of {foreground} ({task})",
        "image_classes": f"one channel each: {channel_list}",
        "label_classes": "one integer per voxel: " + ", ".join(label_values(settings)),
        "pred_classes": f"logits of {', '.join(classes)}",
        "intended_use": f"research on the segmentation of {foreground}; not for clinical use",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def spacing_text(spacing: Sequence[float | None]) -> str:
    """Return a spacing as text; an axis that is not resampled is "kept"."""
    return " x ".join("kept" if value is None else f"{value:g}" for value in spacing) + " mm"


def label_values(plan: Mapping) -> list[str]:
    """Return value and name of each class, and of the ignore label."""
    values = [f"{value} {name}" for value, name in enumerate(plan["labels"])]
    return values if plan.get("ignore_label") is None else [*values, f"{plan['ignore_label']} ignored"]


def replace_weights_section(page: str, section: str) -> str:
    """Return the page of a bundle with another text between the marks of its section about weights."""
    start, end = page.find(BEGIN), page.find(END)
    if not 0 <= start < end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN.strip()!r} and {END.strip()!r}, between which weights stand.")
    return page[: start + len(BEGIN)] + section + page[end:]


def _eval_metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the metadata: of each class, and their means."""
    shown: dict[str, Any] = {f"mean_{metric}": evaluation["mean"][metric] for metric in METRICS}
    for metric in METRICS:
        shown[metric] = {name: values[metric] for name, values in evaluation["classes"].items()}
    return shown


def _section(record: Mapping[str, Any]) -> str:
    """Return the text about weights for the page of the bundle, with the headings that MONAI's model zoo asks for."""
    task, data, evaluation, training = (record[key] for key in ("task", "data", "evaluation", "training"))
    classes, channels = " and ".join(task["labels"][1:]), ", ".join(task["channel_names"])
    rows = [*evaluation["classes"].items(), ("mean", evaluation["mean"])]
    table = [f"| {name} | {' | '.join(_shown(values[metric]) for metric in METRICS)} |" for name, values in rows]
    tolerance = f"{evaluation['tolerance']:g} {evaluation['tolerance_unit']}"
    stored = " (loaded as float32)" if record["precision"] == "float16" else ""
    lines = [
        f"`models/model.pt` segments {classes} in {channels} volumes of {data['name']}. `mednext predict . IMAGE OUT` "
        "needs no options for it. The defaults of `configs/train.json` are the published ones, for your own data; a "
        "training in this folder keeps these weights as `models/pretrained.pt`.",
        "",
        f"The file has {record['bytes'] / 1e6:.1f} MB, {record['precision']}{stored}, and the SHA-256 "
        f"`{record['sha256']}`." + _change_text(evaluation["dice_change_of_half_precision"]),
        "",
        "## **Data**",
        "",
        _data_text(data),
        "",
        "## **Performance**",
        "",
        f"On the {evaluation['cases']} validation cases of fold {data['fold']}, on their own grids, with mirror images "
        "and no post-processing:",
        "",
        f"| class | Dice | surface Dice, {tolerance} | HD95, mm |",
        "| --- | --- | --- | --- |",
        *table,
        "",
        f"![Loss and Dice during the {training['epochs']} epochs of the training]({Path(CURVE).name})",
        "",
        "## **System Configuration**",
        "",
        f"Training: {_training_text(record)}",
        "",
    ]
    return "\n".join(lines)


def _training_text(record: Mapping[str, Any]) -> str:
    training, task = record["training"], record["task"]
    patch, spacing = " x ".join(map(str, task["patch_size"])), spacing_text(task["spacing"])
    origin = training["initialized_from"]
    start = (
        "from random weights" if origin is None else f"started from the checkpoint with SHA-256 `{origin['sha256']}`"
    )
    if origin is not None:
        start += " of another task" if origin["is_transfer"] else " (UpKern)"
    hardware = training["hardware"]
    device = hardware.get("gpu") or f"{hardware['cores']} CPU cores ({hardware['machine']})"
    versions = ", ".join(f"{name} {training['versions'][name]}" for name in ("torch", "monai", "mednext_monai"))
    return (
        f"{training['steps']} steps ({training['epochs']} epochs of {training['iterations_per_epoch']}) of "
        f"{training['batch_size']} patches of {patch} voxels at {spacing}, {start}; the published recipe, learning "
        f"rate {training['learning_rate']:g}, seed {training['seed']}; {device}; {versions}."
    ) + (f" {training['note']}" if training.get("note") else "")


def _data_text(data: Mapping[str, Any]) -> str:
    named = [data["name"], data.get("description"), data.get("reference")]
    text = f"{', '.join(filter(None, named))}; {data['training_cases']} training cases"
    text += f"; {data['license_name']}" if data.get("license_name") else ""
    return text + (f" (`{LICENSE}`)." if data.get("license") else ".")


def _change_text(change: float | None) -> str:
    return "" if change is None else f" Half precision changes the mean Dice by {change:+.6f}."


def _distinct(names: Sequence[str]) -> list[str]:
    """
    Return names of classes that differ in more than their case; one that does not is followed by its value.

    MONAI Label finds a class by its name in lower case, and takes every ``background`` for the first one.
    """
    lower = [name.lower() for name in names]
    taken = {name for name in lower if lower.count(name) > 1} | {"background"}
    return [f"{name}_{value}" if value and name.lower() in taken else name for value, name in enumerate(names)]


def _numbered(items: Iterable[str]) -> dict[str, str]:
    return {str(number): item for number, item in enumerate(items)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=4) + "\n").encode()  # ASCII: MONAI reads it in the encoding of the locale


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
