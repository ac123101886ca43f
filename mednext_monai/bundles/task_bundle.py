"""A bundle for the user's own task: the bundle of a variant with the settings of a plan.

The plan is the file that ``mednext plan`` writes. As an overlay it must be named in every command; here its settings
become those of the bundle, so that ``train.json`` and ``inference.json`` are complete, as MONAI Label needs them. The
metadata and the page of the bundle list its channels and classes. A plan is data: one with anything that MONAI would
evaluate is refused, and names and paths are written so that MONAI reads them as they are.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from ..files import read_json
from ..options import literal, plain
from .label_table import label_table
from .library import LABEL_TABLE, PLACEHOLDER, RECORD, bundle_name, names, path
from .record import CURVE, LICENSE, OF_WEIGHTS, label_values, spacing_text, task_fields

__all__ = ["PLAN_KEYS", "new_bundle", "refuse_code"]

SCHEMA = Path(__file__).with_name("metadata_schema.json")
PAGE = Path(__file__).with_name("task_readme.md")
PLAN_COPY = "task.json"  # the plan, kept beside the configs
SPLITS = "splits.json"  # the folds of the plan: case ids, which are not published with the configs
SLICES_PER_BATCH = 8  # of a prediction in 2D, which a GPU takes at once; the result does not depend on it
SHARED_PAGE = "\n## Export\n"  # from this heading on, the page of the generic bundle applies to every task
REQUIRED = (
    "dataset_dir",
    "in_channels",
    "out_channels",
    "channel_names",
    "labels",
    "spacing",
    "patch_size",
    "batch_size",
    "batch_dice",
    "normalization",
    "intensity",
    "_plan_",
)
INFORMATION = {"channel_names", "labels", "dummy_2d", "_plan_"}  # keys of a plan that are not settings
OPTIONAL = {
    *("fold", "orientation", "splits", "regions", "ignore_label"),
    *("gradient_checkpointing", "spatial_dims", "slice_axis"),
}
PLAN_KEYS = {*REQUIRED, *INFORMATION, *OPTIONAL}  # all it may hold
CHOSEN_ELSEWHERE = {"variant", "kernel_size", "bundle_root", "imports", "released_task"}
DATA_TYPES = {
    **{".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"},
    **{".png": "png", ".tif": "tiff", ".tiff": "tiff"},
}


def new_bundle(variant: str, kernel_size: int, plan: str | Path, output_dir: str | Path) -> Path:
    """
    Create a bundle for the user's own task from a plan. It is verified before it appears, completely or not at all.

    Keys of the plan that are top-level keys of ``train.json`` or ``inference.json`` replace the values there; all
    others must be the information that ``mednext plan`` adds. The overlays are those of the generic bundle, and there
    are no weights yet. ``dataset_dir`` stays the path on this computer, so that the bundle trains without options.

    Args:
        variant: S, B, M or L.
        kernel_size: edge of the depthwise kernels in voxels, 3 or 5.
        plan: the JSON file that ``mednext plan`` wrote.
        output_dir: the bundle's folder, which must be new or empty. Its name becomes the name of the bundle.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if the plan does not exist.
        FileExistsError: if the folder is not empty.
        ValueError: if there is no such variant or kernel size, or if the plan is invalid or holds anything that MONAI
            would evaluate, naming its file and the key.
    """
    source = path(_name(variant, kernel_size))
    target = Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output_dir: {target} exists already and is not empty; choose another folder.")
    content = _read_plan(Path(plan))
    configs = {name: read_json(source / "configs" / f"{name}.json") for name in ("train", "inference", "metadata")}
    _refuse_unknown(content, (configs["train"], configs["inference"]), plan)
    settings = dict(content)
    if isinstance(content.get("gradient_checkpointing"), Mapping):  # by variant
        settings["gradient_checkpointing"] = content["gradient_checkpointing"].get(
            f"{configs['train']['variant']}_k{kernel_size}"
        )
    for name in ("train", "inference"):
        configs[name].update({key: literal(value) for key, value in settings.items() if key in configs[name]})
        configs[name]["released_task"] = None
    if _dims(content) == 2:
        configs["inference"]["sw_batch_size"] = SLICES_PER_BATCH
    splits = content.get("splits")
    if splits:
        configs["train"]["splits"] = f"$@bundle_root + '/configs/{SPLITS}'"
    configs["metadata"] = _metadata(configs["metadata"], content, target.name, configs["train"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        bundle = Path(temporary, target.name)
        shutil.copytree(source, bundle, copy_function=shutil.copyfile)
        for file in (f"models/{RECORD}", f"models/{LABEL_TABLE}", CURVE, LICENSE):  # of weights for another task
            (bundle / file).unlink(missing_ok=True)
        (bundle / "models" / "model.pt").write_bytes(PLACEHOLDER)
        for name in ("train", "inference"):
            _save(bundle / "configs" / f"{name}.json", configs[name])
        _save(bundle / "configs" / "metadata.json", literal(configs["metadata"]))
        _save(bundle / "configs" / PLAN_COPY, literal(content))
        table = label_table(configs["metadata"])
        if table is not None:
            (bundle / "models" / LABEL_TABLE).write_bytes(table)
        if splits:
            (bundle / "configs" / SPLITS).write_text(json.dumps(splits, indent=4) + "\n")
        page = bundle / "docs" / "README.md"
        text = _page(page.read_text(encoding="utf-8"), content, configs)
        page.write_bytes(text.encode("utf-8", "replace"))  # a name may have half a pair of surrogates
        _verify(bundle)
        if target.exists():  # empty
            target.rmdir()
        os.replace(bundle, target)
    return target


def _name(variant: str, kernel_size: int) -> str:
    """Return the name of the generic bundle."""
    name = bundle_name(str(variant), kernel_size)
    if name not in names():
        from ..networks import KERNEL_SIZES, VARIANTS  # imports torch

        raise ValueError(
            f"variant must be one of {', '.join(VARIANTS)} and kernel_size one of {', '.join(map(str, KERNEL_SIZES))}; "
            f"got variant {variant!r} and kernel_size {kernel_size!r}."
        )
    return name


def _save(file: Path, content: Mapping) -> None:
    file.write_text(json.dumps(content, indent=4) + "\n")  # ASCII: MONAI reads it in the encoding of the locale


def _read_plan(file: Path) -> dict:
    """Read a plan and check the keys that the bundle needs."""
    hint = f"create one with `mednext plan DATASET_DIR --output {file.name}`"
    if not file.is_file():
        raise FileNotFoundError(f"plan: the file {file} does not exist; {hint}.")
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"plan: {file} must hold a JSON object, got {type(content).__name__}; {hint}.")
    refuse_code(content, file)
    content = plain(content)
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ValueError(f"plan: {file} is not a complete plan, it lacks {', '.join(missing)}; {hint}.")
    lengths = {"channel_names": "in_channels", "normalization": "in_channels", "labels": "out_channels"}
    for key, count in lengths.items():
        values, number = content[key], content[count]
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"plan: {file}: {count} must be a positive integer, got {number!r}.")
        if not isinstance(values, list) or len(values) != number or not all(isinstance(v, str) for v in values):
            raise ValueError(
                f"plan: {file}: {key} must be a list of {number} string(s), as {count} is {number}; got {values!r}."
            )
    for key, kind, what in (("dataset_dir", str, "a path"), ("_plan_", dict, "an object")):
        if not isinstance(content[key], kind):
            raise ValueError(f"plan: {file}: {key} must be {what}, got {content[key]!r}.")
    if not isinstance(content["_plan_"].get("cases", []), list):
        raise ValueError(f"plan: {file}: the cases in _plan_ must be a list, got {content['_plan_']['cases']!r}.")
    _check_settings(content, file)
    return content


def _check_settings(content: Mapping, file: Path) -> None:
    """Check the values of a plan as the runs of the bundle will."""
    from ..data.folds import check_splits
    from ..weights import task_settings  # imports torch
    from .options import OPTIONS, check_option

    try:
        for key in content:
            if key in OPTIONS and not (key in REQUIRED and content[key] is None):
                check_option(key, content[key])
            elif key in OPTIONS:
                raise ValueError(f"{key} must be {OPTIONS[key].allowed.removesuffix(', or null')}, got None.")
        task_settings(content)
        if content.get("splits") is not None:
            check_splits(content["splits"], None, "splits")
    except ValueError as error:
        raise ValueError(f"plan: {file}: {error}") from error


def refuse_code(value: Any, file: Path, place: str = "") -> None:
    """
    Refuse what MONAI would evaluate in a plan: expressions, references, macros and objects to build.

    Args:
        value: the plan, or a part of it.
        file: its file, for the message.
        place: the key of the part.

    Raises:
        ValueError: naming the file and the key.
    """
    if isinstance(value, (dict, list)):
        if "_target_" in value and isinstance(value, dict):
            raise ValueError(
                f"plan: {file}: {place or 'the top level'} has the key '_target_', from which MONAI would build an "
                "object; a plan holds only data."
            )
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_code(item, file, f"{place}::{key}" if place else str(key))
    elif isinstance(value, str) and value.startswith(("$", "@", "%")) and plain(value) == value:
        raise ValueError(
            f"plan: {file}: {place} is {value!r}, which MONAI would evaluate; a plan holds only data. `mednext plan` "
            "writes names and paths with such characters as a quoted text."
        )


def _refuse_unknown(content: Mapping, configs: Iterable[Mapping], plan: str | Path) -> None:
    """Refuse unknown keys, so that a misspelled setting is not silently ignored."""
    chosen = sorted(CHOSEN_ELSEWHERE & set(content))
    if chosen:
        raise ValueError(f"plan: {plan}: {', '.join(chosen)} cannot be set by a plan; remove them.")
    unknown = sorted(set(content).difference(INFORMATION, *configs))
    if unknown:
        raise ValueError(
            f"plan: {plan}: {', '.join(map(repr, unknown))} is neither a top-level key of train.json or "
            "inference.json nor written by `mednext plan`."
        )


def _metadata(generic: dict, plan: Mapping, name: str, train: Mapping) -> dict:
    """Return the metadata of the generic bundle with the name, channels and classes of the task."""
    task = str(plan["_plan_"].get("name", name))
    channels, classes = plan["channel_names"], plan["labels"]
    cases = len(plan["_plan_"].get("cases", [])) or "unknown number of"
    channel_list, foreground = ", ".join(channels), ", ".join(classes[1:])
    network = f"MedNeXt-{train['variant']} with kernel size {train['kernel_size']} (Roy et al., MICCAI 2023)"
    images = "volumes" if _dims(plan) == 3 else "slices"
    kept = {key: value for key, value in generic.items() if key not in OF_WEIGHTS}
    return {
        **kept,
        "version": "0.1.0",
        "changelog": {"0.1.0": "created from the plan in configs/task.json; not trained yet"},
        "name": name,
        "description": f"{network} and its training recipe, for {foreground} in {channel_list} {images} of {task}",
        "authors": "the owner of this bundle; network and recipe by Saikat Roy et al., German Cancer Research Center",
        "copyright": "Copyright (c) the owner of this bundle",
        "data_source": f"{task}, {cases} cases",
        "data_type": DATA_TYPES.get(str(plan["_plan_"].get("file_ending", "")).lower(), generic["data_type"]),
        **task_fields(generic, task, plan),
    }


def _evaluated(plan: Mapping) -> str:
    """Return the end of the list of classes on the page: regions, if there are any."""
    regions = plan.get("regions") or {}
    named = ", ".join(f"{name} ({' + '.join(map(str, values))})" for name, values in regions.items())
    return f". Evaluated as the regions {named}" if named else ""


def _page(generic: str, plan: Mapping, configs: Mapping[str, Mapping]) -> str:
    """Return the bundle's page: the commands of the task, then the part of the generic page for every task."""
    metadata = configs["metadata"]
    split = generic.find(SHARED_PAGE)
    if split < 0:
        raise ValueError(f"docs/README.md of the generic bundle lacks the heading {SHARED_PAGE.strip()!r}.")
    channels = [f"{i} {name} ({s})" for i, (name, s) in enumerate(zip(plan["channel_names"], plan["normalization"]))]
    fields = {
        "name": metadata["name"],
        "description": metadata["description"],
        "data_source": metadata["data_source"],
        "channels": ", ".join(channels),
        "classes": ", ".join(label_values(plan)) + _evaluated(plan),
        "patch_size": " x ".join(map(str, _each(plan["patch_size"], _dims(plan)))),
        "spacing": spacing_text(_each(plan["spacing"], 3)),
        "dims": f"{_dims(plan)}D",
        "mirror_speed": {2: "four", 3: "eight"}[_dims(plan)],
        "slices": f", of slices across axis {plan.get('slice_axis', 2)}" if _dims(plan) == 2 else "",
    }
    return Template(PAGE.read_text(encoding="utf-8")).substitute(fields) + generic[split:]


def _each(value: Any, axes: int) -> list:
    """Return the values of the axes, for which one may stand."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * axes


def _dims(plan: Mapping) -> int:
    return plan.get("spatial_dims") or 3


def _verify(bundle: Path) -> None:
    """Verify with MONAI the metadata against its schema, and the network's input and output against the metadata."""
    from monai.bundle import verify_metadata, verify_net_in_out

    metadata, config = (str(bundle / "configs" / file) for file in ("metadata.json", "inference.json"))
    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # MONAI logs the arguments of both
    try:
        if importlib.util.find_spec("jsonschema") is None:
            warnings.warn(
                "metadata.json was not checked against its schema; to do so, pip install jsonschema", stacklevel=3
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MONAI warns that the local schema has no hash
                verify_metadata(meta_file=metadata, filepath=str(SCHEMA))
        verify_net_in_out("network_def", metadata, config, device="cpu", bundle_root=str(bundle))  # not where we are
    finally:
        logging.disable(level)
