"""Releasing trained weights: a small file of them, and a record of how they were made and how good they are.

``mednext bundle release`` writes ``models/model.pt`` and its record, ``models/model.json``, from which ``record`` makes
metadata and page.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_path, json_object, read_json, write_atomically
from .archive import bundle_files
from .library import RECORD, bundle_name, has_weights, path
from .record import CONFIGS, METADATA, METRICS, PAGE, apply_record
from .task_bundle import PLAN_COPY, SPLITS

__all__ = ["release"]

OF_TASK = (
    *("in_channels", "out_channels", "channel_names", "labels", "regions", "ignore_label"),
    *("spatial_dims", "slice_axis", "spacing", "orientation", "normalization", "patch_size"),
)
CURVES = {
    "mean_train_loss": "loss",
    "val_pooled_dice_average": "Dice of patches, moving average",
    "val_mean_dice": "Dice of volumes",
}


def release(
    bundle: str | Path,
    output_dir: str | Path,
    half: bool = True,
    data_license: str | Path | None = None,
    note: str | None = None,
    evaluate: Callable[[Path, Path], None] | None = None,
) -> Path:
    """
    Write the weights of a trained and evaluated bundle, with their record, to another bundle.

    Args:
        bundle: folder of the bundle after its training and evaluation of fold 0, with ``models/model.pt``,
            ``models/last.pt``, ``eval/metrics.json`` and the curves in ``eval``.
        output_dir: a bundle of the same variant and kernel size without weights or with weights released before, or a
            new folder, to which what is public in the bundle is copied.
        half: whether to store the weights in half precision, which halves the file. Defaults to ``True``.
        data_license: a text file with source and license of the data. Defaults to ``None``: those in
            ``dataset.json``, if it states them.
        note: a sentence about the training for the page. Defaults to ``None``.
        evaluate: function that evaluates a checkpoint and writes its tables to a folder, for the weights in half
            precision. Defaults to ``None``: the bundle's own evaluation.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: if the bundle was not trained or not evaluated, naming what is missing.
        ValueError: if the files do not belong to each other, or the other bundle is of another variant or kernel size
            or holds weights that were not released.
    """
    source, target = Path(bundle).absolute(), Path(output_dir).absolute()
    config = _config(source)
    _check_target(source, target, config)
    weights, measured = source / "models" / "model.pt", source / "eval" / "metrics.json"
    content, settings, training = _trained(source)
    _check_evaluation(measured, weights)
    with tempfile.TemporaryDirectory(prefix="mednext.") as folder:
        file = Path(folder, "model.pt")
        _write_weights(content, settings, file, half)
        change = None
        if half:
            tables = Path(folder, "eval")
            (evaluate or _evaluation_of(source))(file, tables)
            change = _mean_dice(tables / "metrics.json") - _mean_dice(measured)
            measured = tables / "metrics.json"
        record = _record(file, settings, training, config, read_json(measured), change)
        record["training"]["note"] = note
        record["data"] |= _data(read_json(measured)["settings"]["dataset_dir"], data_license)
        record["curve"] = _curve(source / "eval", training["epochs"])
        _copy_public(source, target)
        with atomic_path(target / "models" / "model.pt") as temporary:
            shutil.copyfile(file, temporary)
    write_atomically(target / "models" / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    names = (PAGE, METADATA, *CONFIGS)
    for name, data in apply_record({name: (target / name).read_bytes() for name in names}, record).items():
        write_atomically(target / name, data)
    return target


def _config(bundle: Path) -> dict[str, Any]:
    file = bundle / "configs" / "train.json"
    if not file.is_file():
        raise ValueError(f"bundle: {bundle} is not a bundle, it has no configs/train.json.")
    return read_json(file)


def _check_target(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    from ..weights.released import is_released

    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.samefile(source):
        raise ValueError(f"output_dir: {target} is the bundle itself; name another folder.")
    other = _config(target)
    for key in ("variant", "kernel_size"):
        if other.get(key) != config[key]:
            raise ValueError(f"output_dir: {target} has {key} {other.get(key)}, {source} has {config[key]}.")
    if has_weights(target) and not is_released(target / "models" / "model.pt"):
        raise ValueError(f"output_dir: {target} has weights that were not released; they are not replaced.")


def _trained(source: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the tensors, what they carry, and how they were trained according to the state of the training."""
    from ..weights import read_checkpoint, read_settings, read_state_dict
    from ..weights.state_dict import find_state_dict, plain_names

    weights, last = source / "models" / "model.pt", source / "models" / "last.pt"
    tensors, settings = read_state_dict(weights), read_settings(weights)
    if settings is None:
        raise ValueError(
            f"{weights} does not say how it was trained: only weights of a bundle's training are released."
        )
    state = read_checkpoint(last)
    final = plain_names(find_state_dict(state, last))
    if tensors.keys() != final.keys() or not all((tensors[name] == final[name]).all() for name in tensors):
        raise ValueError(f"{last} is not the state in which {weights} was written: release the end of a training.")
    trainer, optimizer = state["trainer"], state["optimizer"]["param_groups"][0]
    length, steps = trainer["epoch_length"], trainer["iteration"]
    training = {
        "steps": steps,
        "epochs": steps // length,
        "iterations_per_epoch": length,
        "learning_rate": optimizer.get("initial_lr", optimizer["lr"]),
        "weight_decay": optimizer["weight_decay"],
        "seed": state.get("run", {}).get("seed"),
        "initialized_from": settings.get("initialized_from"),
        "versions": settings["versions"],
        "hardware": {key: value for key, value in settings["hardware"].items() if key != "system"},
    }
    return tensors, settings, training


def _check_evaluation(measured: Path, weights: Path) -> None:
    hint = "evaluate it first: mednext evaluate BUNDLE"
    if not measured.is_file():
        raise FileNotFoundError(f"{measured} does not exist; {hint}.")
    settings = json_object(measured).get("settings", {})
    checkpoint = str(settings.get("checkpoint"))
    if os.path.realpath(checkpoint) != os.path.realpath(weights):
        raise ValueError(f"{measured} is the evaluation of {checkpoint}, not of {weights}; {hint}.")
    if measured.stat().st_mtime < weights.stat().st_mtime:
        raise ValueError(f"{measured} is older than {weights}; {hint}.")
    if not settings.get("mirror"):
        raise ValueError(f"{measured} was evaluated without mirror images, which are published; {hint}.")


def _write_weights(tensors: Mapping, settings: Mapping, file: Path, half: bool) -> None:
    from ..weights import write_checkpoint
    from ..weights.settings import attach_settings

    stored = {name: tensor.half() if half else tensor.clone() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in stored.values()):
        raise ValueError("half: a weight is too large for half precision; release in full precision: --half false.")
    write_checkpoint(attach_settings(stored, settings), file)


def _evaluation_of(source: Path) -> Callable[[Path, Path], None]:
    """Return a function that evaluates a checkpoint with the bundle's own workflow."""
    from .commands import bundle_command, run_command

    def evaluate(checkpoint: Path, output_dir: Path) -> None:
        options = {"checkpoint": checkpoint, "output_dir": output_dir, "progress_bar": False}
        configs = ("train", "evaluate")
        status = run_command(bundle_command(source, configs, "evaluating", **options), "evaluate")
        if status != 0:
            raise ChildProcessError("the evaluation of the weights in half precision failed, as said above.")

    return evaluate


def _mean_dice(file: Path) -> float:
    return float(read_json(file)["mean_over_classes"]["dice"])


def _record(
    file: Path, settings: Mapping, training: Mapping, config: Mapping, measured: Mapping, change: float | None
) -> dict[str, Any]:
    from ..files import sha256

    evaluated = measured["settings"]
    return {
        "sha256": sha256(file),
        "bytes": file.stat().st_size,
        "precision": "float32" if change is None else "float16",
        "variant": settings["variant"],
        "kernel_size": settings["kernel_size"],
        "task": {key: settings.get(key) for key in OF_TASK},
        "training": {**training, "batch_size": config["batch_size"]},
        "data": {"fold": settings["fold"], "training_cases": len(settings["training_ids"])},
        "evaluation": {
            "cases": measured["cases"],
            "mirror": evaluated["mirror"],
            "tolerance": evaluated["surface_dice_tolerance"],
            "tolerance_unit": evaluated["surface_dice_unit"],
            "classes": {
                name: {metric: _rounded(found[metric]["mean"]) for metric in METRICS}
                for name, found in measured["classes"].items()
            },
            "mean": {metric: _rounded(measured["mean_over_classes"][metric]) for metric in METRICS},
            "dice_change_of_half_precision": None if change is None else round(change, 7),
        },
    }


def _data(dataset_dir: str, data_license: str | Path | None) -> dict[str, Any]:
    """Return name, source and license of a data set."""
    from ..data.dataset import read_dataset

    described = json_object(Path(dataset_dir, "dataset.json"))
    text = None if data_license is None else Path(data_license).read_text(encoding="utf-8")
    found = {
        "name": read_dataset(dataset_dir).name or Path(dataset_dir).name,
        "description": described.get("description"),
        "reference": described.get("reference"),
        "license_name": described.get("licence") or described.get("license"),
        "license": text,
    }
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _curve(folder: Path, epochs: int) -> dict[str, list[tuple[int, float | None]]]:
    """Return the curves of the training by name, a point per epoch."""
    from ..curves import Curves

    curves = Curves(folder)
    points = {name: {e.step: e.value for e in curves(tag) if e.step <= epochs} for tag, name in CURVES.items()}
    return {name: [(step, _rounded(value)) for step, value in sorted(p.items())] for name, p in points.items() if p}


def _copy_public(source: Path, target: Path) -> None:
    """Copy what is public of a bundle, without weights, to a new or empty folder: no case ids, no path of the data."""
    if (target / "configs").is_dir():
        return
    private = {source / "configs" / name for name in (PLAN_COPY, SPLITS)}
    for file in bundle_files(source):
        place = file.relative_to(source)
        if place.parts[0] != "models" and file not in private:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / place)
    generic = path(bundle_name(*(_config(source)[key] for key in ("variant", "kernel_size"))))
    for name in CONFIGS:
        config, default = read_json(target / name), read_json(generic / name)
        config.update({key: default[key] for key in ("dataset_dir", "splits") if key in config})
        write_atomically(target / name, (json.dumps(config, indent=4) + "\n").encode())


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 5)
