"""What a checkpoint says about its training, so that inference and evaluation preprocess images as the training did.

A checkpoint stays a plain state dict: the settings travel in the ``_metadata`` of the ``OrderedDict`` that
``torch.nn.Module.state_dict`` returns, where PyTorch itself keeps the versions of modules. ``torch.save`` writes it,
``torch.load(weights_only=True)`` reads it, and strict loading ignores it. They consist of numbers, strings, lists and
dictionaries only.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.dataset import DatasetError, cases_digest, read_dataset
from ..environment import hardware, package_versions
from ..evaluation.labels import Labels
from ..files import json_object, sha256
from ..options import patch_size, plain
from ..preprocessing.case import check_settings
from .locate import fold_name
from .nnunet import is_nnunet, nnunet_settings
from .released import StartingPoint
from .state_dict import find_state_dict, is_placeholder, read_checkpoint, unwrap_parallel

__all__ = [
    "attach_settings",
    "carry_settings",
    "check_fold",
    "read_settings",
    "same",
    "settings_of",
    "task_settings",
    "training_record",
    "training_settings",
]

logger = logging.getLogger(__name__)
KEY = "mednext_monai"  # in the _metadata of a state dict
PUBLISHED: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 2,
    "spacing": [1.0, 1.0, 1.0],
    "orientation": None,
    "spatial_dims": 3,
    "slice_axis": None,
    "patch_size": [128, 128, 128],
}
PUBLISHED_2D: dict[str, Any] = {  # of the authors' planner, which calls 2D untested
    "slice_axis": 2,  # the last axis of a NIfTI file, which is the first one that the original reads
    "patch_size": [512, 512],
}
PREPROCESSING = ("spacing", "orientation", "normalization", "intensity")
SPATIAL = ("spatial_dims", "slice_axis")
TASK = ("in_channels", "out_channels", *SPATIAL, *PREPROCESSING, "patch_size")
ANNOTATION = ("regions", "ignore_label")  # of the labels, so they may differ from those of the training
MAX_LABEL = 255  # patches hold labels as uint8
LARGEST = {"in_channels": 10000, "out_channels": 2**15}  # file names have four digits for it; label maps are int16
MAX_SHOWN = 3  # cases named in a message


def task_settings(
    stated: Mapping[str, Any],
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    dataset_dir: str | Path | None = None,
    released: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Return the settings of a task: those that the checkpoint was trained with, or for a training the stated ones.

    Args:
        stated: ``in_channels``, ``out_channels``, ``spatial_dims`` (3, or 2 for slices), ``slice_axis`` (across the
            slices), ``spacing``, ``orientation``, ``normalization``, ``intensity`` and ``patch_size`` of the options,
            the plan or the bundle; ``None`` for one that is not stated. ``regions`` (values of classes by the name of
            their union) and ``ignore_label`` (of voxels without annotation) may be missing.
        checkpoint: the checkpoint of an inference or evaluation, or several of one task. Its settings are used; a
            stated one must agree, except for the patch size, which is then the size of the windows, and for regions
            and ignore label, which belong to the labels that are evaluated. If the checkpoint
            has no settings, those that are not stated are assumed to be the published ones, and a warning lists them. A
            file that does not exist or is the placeholder of a bundle is ignored here. Defaults to ``None``: a
            training, in which settings that are not stated are the published ones.
        dataset_dir: the data set of a training or evaluation, whose ``dataset.json`` gives regions and ignore label if
            neither what is stated nor the checkpoint does. One that cannot be read is left to the checks of the cases.
            Defaults to ``None``: there are no labels.
        released: ``in_channels``, ``out_channels`` and, of slices, ``spatial_dims`` of the weights that the bundle came
            with. They replace the published ones where there is neither a checkpoint nor a data set, as in
            ``monai.bundle.load``, which then loads all weights. Defaults to ``None``: there are none.

    Returns:
        these nine settings, in the form of :py:func:`~mednext_monai.preprocessing.case.check_settings`, and
        ``regions`` and ``ignore_label``, each ``None`` if there is none.

    Raises:
        ValueError: if a setting is invalid or contradicts the checkpoint, naming it, both values and what to do; if
            ``out_channels`` counts the ignore label of the data set as a class; or if several checkpoints were trained
            with different settings.
    """
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        settings, *others = [task_settings(stated, one, released=released) for one in checkpoint]
        for one, other in zip(checkpoint[1:], others):
            for key in TASK:
                if not same(other[key], settings[key]):
                    raise ValueError(
                        f"{one} was trained with {key} {other[key]!r}, {checkpoint[0]} with {settings[key]!r}: their "
                        "probabilities cannot be averaged."
                    )
        return settings
    stated = {key: stated.get(key) for key in (*TASK, *ANNOTATION)}
    if isinstance(stated["spacing"], (int, float)):
        stated["spacing"] = [stated["spacing"]] * 3
    if checkpoint is None or not Path(checkpoint).is_file() or is_placeholder(checkpoint):
        if released and (dataset_dir is None or not Path(dataset_dir, "dataset.json").is_file()):
            stated.update({key: value for key, value in released.items() if stated[key] is None})
        return _complete(_with_annotation(stated, dataset_dir))  # loading the weights reports a file that is missing
    trained = read_settings(checkpoint)
    if trained is None:
        settings = _complete(_with_annotation(stated, dataset_dir))
        assumed = [f"{key} {settings[key]}" for key in _shown(settings) if stated[key] is None and key != "intensity"]
        if assumed:
            logger.warning(
                f"{checkpoint} does not say how it was trained. Assumed, because they are not stated: "
                f"{', '.join(assumed)}."
            )
        return settings
    _refuse_contradictions(stated, trained, checkpoint)
    united = {key: trained[key] if value is None else value for key, value in stated.items()}
    settings = _complete(_with_annotation(united, dataset_dir))
    if not same(settings["intensity"], trained["intensity"]):
        _refuse("intensity", settings["intensity"], trained["intensity"], checkpoint)
    shown = [f"{key} {trained[key]}" for key in _shown(trained)]
    shown += [f"{key} {settings[key]}" for key in ANNOTATION if settings[key] is not None]
    logger.info(f"settings of {checkpoint}: {', '.join(shown)}")
    if not same(settings["patch_size"], trained["patch_size"]):
        logger.info(f"windows of {settings['patch_size']} voxels; trained on patches of {trained['patch_size']}")
    return settings


def training_settings(
    task: Mapping[str, Any],
    variant: str,
    kernel_size: int,
    fold: int | str,
    cases: Sequence[Mapping],
    dataset_dir: str | Path,
    device: str | torch.device = "cpu",
    start: StartingPoint | None = None,
    metadata: str | Path | None = None,
) -> dict[str, Any]:
    """
    Return what the checkpoints of a training carry.

    Args:
        task: result of :py:func:`task_settings`.
        variant: S, B, M or L.
        kernel_size: edge of the depthwise kernels in voxels.
        fold: fold index or ``"all"``.
        cases: the training cases.
        dataset_dir: the data set, whose ``dataset.json`` names channels and classes.
        device: the device of the training. Defaults to ``"cpu"``.
        start: where it starts. Defaults to ``None``: from random weights.
        metadata: the metadata of the bundle, a JSON file, which names channels and classes if the data set cannot be
            read, because a tool has listed the cases. Defaults to ``None``.

    Returns:
        the settings of the task; ``variant``, ``kernel_size``,
        ``channel_names`` and ``labels`` (background first), ``fold``, ``training_cases`` (their number and a hash of
        their ids), ``training_ids`` (a hash of each id: no id leaves the data set), ``initialized_from`` (``None``, or
        the SHA-256 of a checkpoint and whether it was of another task), ``package_version``, ``versions`` and
        ``hardware``.
    """
    channel_names, labels = _names(dataset_dir, metadata, task["in_channels"], task["out_channels"])
    return {
        **{key: task[key] for key in TASK},
        "regions": task["regions"],
        "ignore_label": task["ignore_label"],
        "variant": variant,
        "kernel_size": kernel_size,
        "channel_names": channel_names,
        "labels": labels,
        "fold": fold_name(fold),
        **training_record(cases),
        "initialized_from": _origin(start),
        "package_version": __version__,
        "versions": package_versions(),
        "hardware": hardware(device),
    }


def training_record(cases: Sequence[Mapping]) -> dict[str, Any]:
    """Return what a checkpoint says about its training cases, without their ids, see :py:func:`training_settings`."""
    return {"training_cases": cases_digest(cases), "training_ids": [_hash(case) for case in cases]}


def _names(
    dataset_dir: str | Path, metadata: str | Path | None, in_channels: int, out_channels: int
) -> tuple[list[str], list[str]]:
    """Return the names of channels and classes in a data set or, if it cannot be read, in the metadata of a bundle."""
    try:
        dataset = read_dataset(dataset_dir)
    except DatasetError:
        content = {} if metadata is None else plain(json_object(Path(metadata)))
    else:
        return list(dataset.channel_names), list(dataset.labels)
    sides = []
    for side, name, count, kind in (
        ("inputs", "image", in_channels, "channel"),
        ("outputs", "pred", out_channels, "class"),
    ):
        found = content.get("network_data_format", {}).get(side, {}).get(name, {}).get("channel_def", {})
        names = [str(found.get(str(number), f"{kind}_{number}")) for number in range(count)]
        sides.append(names if len(found) == count else [f"{kind}_{number}" for number in range(count)])
    return sides[0], sides[1]


def _origin(start: StartingPoint | None) -> dict[str, Any] | None:
    if start is None or start.path is None or not Path(start.path).is_file():  # which the training reports
        return None
    return {"sha256": sha256(start.path), "is_transfer": start.is_transfer}


def carry_settings(network: torch.nn.Module, settings: Mapping[str, Any]) -> None:
    """
    Let every state dict of a network carry settings, whoever takes it.

    Args:
        network: the network, wrapped by DataParallel or DistributedDataParallel or not.
        settings: result of :py:func:`training_settings`.
    """

    def add(module: torch.nn.Module, state_dict: Mapping, prefix: str, local_metadata: Mapping) -> None:
        state_dict._metadata[KEY] = dict(settings)  # type: ignore[attr-defined]

    unwrap_parallel(network).register_state_dict_post_hook(add)


def attach_settings(state_dict: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict with settings; further ``_metadata`` are dropped, which concern old versions of modules."""
    result = OrderedDict(state_dict)
    result._metadata = {KEY: dict(settings)}  # type: ignore[attr-defined]
    return result


def settings_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Return the settings that a state dict carries, unchecked, or ``None``."""
    metadata = getattr(state_dict, "_metadata", None)
    return metadata.get(KEY) if isinstance(metadata, Mapping) else None


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """
    Return the settings that a checkpoint carries, as :py:func:`training_settings` made them, or ``None``.

    Those of a checkpoint of nnU-Net v2 come from the plans in it, see
    :py:func:`~mednext_monai.weights.nnunet.nnunet_settings`.

    Raises:
        FileNotFoundError, ValueError: as :py:func:`read_state_dict`; ``ValueError`` also if the settings are invalid.
    """
    if not Path(path).is_file():
        read_checkpoint(path)  # raises
    status = os.stat(path)
    return _read_settings(str(path), status.st_mtime_ns, status.st_size)


def check_fold(checkpoint: str | Path, fold: int | str, cases: Sequence[Mapping]) -> None:
    """
    Check that a checkpoint is not evaluated on its own training cases.

    With fold ``"all"`` all cases are for training and for validation, which is then a warning.

    Args:
        checkpoint: the checkpoint. One without settings is not checked.
        fold: the fold to evaluate.
        cases: its validation cases.

    Raises:
        ValueError: naming both folds, cases of both, and what to do.
    """
    trained = read_settings(checkpoint)
    if trained is None:
        return
    known, fold, trained_fold = set(trained["training_ids"]), fold_name(fold), trained["fold"]
    seen = [case["id"] for case in cases if _hash(case) in known]
    if not seen:
        return
    cases_seen = f"{len(seen)} of the {len(cases)} cases to evaluate are its training cases ({_some(seen)})"
    if fold == trained_fold == "all":
        logger.warning(f"{checkpoint} was trained on fold all: {cases_seen}, so the scores say little about new images")
        return
    if fold != trained_fold:
        found = f"{checkpoint} was trained on fold {trained_fold} and cannot be evaluated on fold {fold}"
        way = f"Evaluate its own fold with --fold {trained_fold}, or name a checkpoint of fold {fold} with --checkpoint"
    else:
        found = f"{checkpoint} was trained on another fold {fold} than this data set and its splits have"
        way = "Evaluate the folds of the training: name its plan after the other configs"
    raise ValueError(f"fold: {found}: {cases_seen}. {way}.")


@functools.lru_cache(maxsize=4)
def _read_settings(path: str, modified: int, size: int) -> dict[str, Any] | None:
    checkpoint = read_checkpoint(path)
    settings = settings_of(find_state_dict(checkpoint, path))
    if settings is None and is_nnunet(checkpoint):
        settings = nnunet_settings(checkpoint, path)
    if settings is None:
        return None
    try:
        checked = {**settings, **_complete(settings)}
        fold, ids = fold_name(checked["fold"]), [str(name) for name in checked["training_ids"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the settings that it was trained with are invalid: {error!r}") from error
    return {**checked, "fold": fold, "training_ids": ids}


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what is ``None`` as published, and check and normalize the result."""
    stated = {**dict.fromkeys(SPATIAL), **settings}  # checkpoints of before 2D have neither
    dims = PUBLISHED["spatial_dims"] if stated["spatial_dims"] is None else stated["spatial_dims"]
    if type(dims) is not int or dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {dims!r}.")
    published = {**PUBLISHED, **(PUBLISHED_2D if dims == 2 else {})}
    filled = {key: value if stated[key] is None else stated[key] for key, value in published.items()}
    axis = filled["slice_axis"]
    if axis is not None and (type(axis) is not int or axis not in (0, 1, 2)[: 3 if dims == 2 else 0]):
        allowed = "0, 1 or 2" if dims == 2 else "null, since spatial_dims is 3: it is for networks of slices"
        raise ValueError(f"slice_axis must be {allowed}; got {axis!r}.")
    if axis is not None and stated["spacing"] is None:  # slices are resampled in their plane only
        filled["spacing"] = [None if other == axis else value for other, value in enumerate(PUBLISHED["spacing"])]
    for key, largest in LARGEST.items():
        if type(filled[key]) is not int or not 1 <= filled[key] <= largest:
            raise ValueError(f"{key} must be a positive integer up to {largest}, got {filled[key]!r}.")
    channels = filled["in_channels"]
    schemes = ["zscore"] * channels if settings["normalization"] is None else settings["normalization"]
    preprocessing = check_settings(
        {**filled, "normalization": schemes, "intensity": settings["intensity"]}, channels=channels
    )
    annotation = _annotation(settings.get("regions"), settings.get("ignore_label"), filled["out_channels"])
    return {**filled, "spatial_dims": dims, **preprocessing, "patch_size": patch_size(filled["patch_size"], dims)} | (
        annotation
    )


def _with_annotation(settings: Mapping[str, Any], dataset_dir: str | Path | None) -> dict[str, Any]:
    """Return settings with the regions and the ignore label of the data set, if they have none."""
    filled = dict(settings)
    try:
        dataset = None if dataset_dir is None else read_dataset(str(dataset_dir))
    except DatasetError:
        dataset = None
    if dataset is None:
        return filled
    classes = PUBLISHED["out_channels"] if filled["out_channels"] is None else filled["out_channels"]
    if filled["ignore_label"] is None and dataset.ignore_label is not None:
        if isinstance(classes, int) and classes > dataset.ignore_label:
            raise ValueError(
                f"out_channels is {classes}, but in {dataset.directory / 'dataset.json'} the label "
                f"{dataset.ignore_label} is 'ignore', that of voxels without annotation, and no class; set "
                f"out_channels to {dataset.ignore_label}."
            )
        filled["ignore_label"] = dataset.ignore_label
    if filled["regions"] is None and classes == len(dataset.labels):
        filled["regions"] = dataset.regions or None
    return filled


def _annotation(regions: Any, ignore_label: Any, out_channels: int) -> dict[str, Any]:
    """Check regions and ignore label of labels with ``out_channels`` classes."""
    if ignore_label is not None and (type(ignore_label) is not int or not out_channels <= ignore_label <= MAX_LABEL):
        raise ValueError(
            f"ignore_label must be an integer above the labels of the classes, {out_channels} to {MAX_LABEL}, got "
            f"{ignore_label!r}."
        )
    if not regions:
        return {"regions": None, "ignore_label": ignore_label}
    if not isinstance(regions, Mapping) or not all(isinstance(values, (list, tuple)) for values in regions.values()):
        raise ValueError(f"regions must be lists of labels by the name of the region, got {regions!r}.")
    try:
        Labels({str(value): value for value in range(1, out_channels)}, regions, ignore_label)
    except ValueError as error:
        raise ValueError(f"regions: {error}") from error
    return {"regions": {name: list(values) for name, values in regions.items()}, "ignore_label": ignore_label}


def _shown(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of a task that a message names: those of slices only if it has any."""
    return [key for key in TASK if settings["spatial_dims"] == 2 or key not in SPATIAL]


def _refuse_contradictions(stated: Mapping[str, Any], trained: Mapping[str, Any], checkpoint: str | Path) -> None:
    for key in ("in_channels", "out_channels", *SPATIAL, "spacing", "orientation", "normalization"):
        if stated[key] is not None and not same(stated[key], trained[key]):
            _refuse(key, stated[key], trained[key], checkpoint)


def _refuse(key: str, stated: Any, trained: Any, checkpoint: str | Path) -> None:
    raise ValueError(
        f"{key} is {stated!r}, but {checkpoint} was trained with {trained!r}. Leave out {key} (as an option, in a plan "
        "or in the config of the bundle) to use the checkpoint's, or name another checkpoint with --checkpoint."
    )


def same(one: Any, other: Any) -> bool:
    """Return whether plain values are equal: numbers up to rounding, a list and a tuple by their items."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _hash(case: Mapping) -> str:
    return hashlib.blake2b(str(case["id"]).encode(), digest_size=6).hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN]) + (f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else "")
