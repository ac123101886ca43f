"""From the weights of a bundle to a model folder of nnU-Net v2, for ``nnUNetv2_predict_from_modelfolder``.

The inverse of what ``mednext convert`` does with a checkpoint of nnU-Net v2. nnunetv2 is not needed to write the
folder; to predict with it, nnU-Net must find the trainers (``nnUNet_extTrainer``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import json_object, write_atomically
from ..preprocessing.normalization import by_channel
from ..weights import describe, find_checkpoint, read_settings, read_weights, write_checkpoint
from ..weights.nnunet import IGNORE, ORDERS, READERS, RESAMPLING, SCHEMES, STATISTICS, from_file_axes
from .names import TRAINERS

__all__ = ["ModelFolder", "export"]

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlansMedNeXt"
AXES = {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}  # arrays stay (z, y, x)
ARCHITECTURE = {  # nnU-Net looks at the strides only, MedNeXt comes from the trainer
    "network_class_name": "mednext_monai.networks.MedNeXt",
    "arch_kwargs": {"strides": [[1, 1, 1], *([[2, 2, 2]] * 4)]},
    "_kw_requires_import": [],
}
LATE = {"zscore": "zscore_v2", "masked_zscore": "masked_zscore_v2", "CT": "CT_v2"}  # what nnU-Net v2 has instead


class ModelFolder(NamedTuple):
    """What :py:func:`export` wrote."""

    folder: Path
    checkpoint: Path
    trainer: str
    notes: list[str]  # sentences for the user

    def __str__(self) -> str:
        return "\n".join([f"wrote {self.checkpoint}, for the trainer {self.trainer}", *self.notes])


def export(source: str | Path, output_dir: str | Path, overwrite: bool = False) -> ModelFolder:
    """
    Write ``plans.json``, ``dataset.json`` and ``fold_<k>/checkpoint_final.pth``.

    Further folds of the same training can be exported into the same folder.

    Args:
        source: a bundle, or a checkpoint that carries the settings of its training.
        output_dir: the folder to write to.
        overwrite: whether to replace a checkpoint that is there. Defaults to ``False``.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint has no settings, no auxiliary heads or is not of a published variant; if nnU-Net
            v2 cannot do what the bundle does: masked CT, orientations other than RAS, axes that keep their spacing; or
            if the folder has another model, or a checkpoint of this fold.
    """
    path = find_checkpoint(None, Path(source, "models")) if Path(source).is_dir() else str(source)
    settings, weights = read_settings(path), read_weights(path)
    if settings is None:
        raise ValueError(f"{path} does not carry the settings of its training, which nnU-Net needs.")
    trainer = _trainer(weights, path)
    try:
        plans, dataset = _plans(settings), _dataset(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    folder = Path(output_dir)
    target = folder / f"fold_{settings['fold']}" / "checkpoint_final.pth"
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        if (folder / name).exists() and json_object(folder / name) != content:
            raise ValueError(f"{folder / name} is that of another model; choose another folder.")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; --overwrite true replaces it.")
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        write_atomically(folder / name, (json.dumps(content, indent=4) + "\n").encode())
    write_checkpoint(_checkpoint(weights, settings, plans, dataset, trainer), target)
    return ModelFolder(folder, target, trainer, _notes(settings))


def _trainer(weights: Mapping[str, torch.Tensor], path: str) -> str:
    description = describe(weights)
    found = (description.variant, description.encoder_kernel_size)
    sizes = {description.encoder_kernel_size, description.decoder_kernel_size}
    names = [name for name, one in TRAINERS.items() if (one.variant, one.kernel_size) == found and len(sizes) == 1]
    if not names or description.spatial_dims != 3:
        raise ValueError(f"{path} is a {description}, and there is no trainer of it; the published variants have one.")
    if not description.deep_supervision:
        raise ValueError(f"{path} has no deep supervision heads, which the network of {names[0]} has.")
    return names[0]


def _plans(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plans with which nnU-Net v2 prepares images as the settings say, as far as it can."""
    reader = next((name for name, codes in READERS.items() if codes == settings["orientation"]), None)
    if reader is None:
        raise ValueError(f"nnU-Net v2 orients images to RAS or not at all, not to {settings['orientation']}.")
    if None in settings["spacing"]:
        raise ValueError(f"nnU-Net v2 resamples all axes, and the spacing is {settings['spacing']}.")
    patch = list(settings["patch_size"])[::-1]
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": list(settings["spacing"])[::-1],
        **_normalization(settings["normalization"]),
        **_resampling(),
        "architecture": ARCHITECTURE,
        "batch_dice": False,
    }
    intensity = by_channel(settings["intensity"])
    statistics = {  # nnU-Net looks each channel up
        str(channel): {theirs: intensity[channel][ours] for ours, theirs in STATISTICS.items()}
        if channel in intensity
        else {}
        for channel in range(settings["in_channels"])
    }
    return {
        "dataset_name": "Dataset000_MedNeXt",
        "plans_name": PLANS,
        "original_median_spacing_after_transp": configuration["spacing"],
        "original_median_shape_after_transp": patch,
        "image_reader_writer": reader,
        **AXES,
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": statistics,
    }


def _normalization(schemes: list[str]) -> dict[str, list]:
    theirs = {scheme: (name, bool(masked)) for name, pair in SCHEMES.items() for masked, scheme in enumerate(pair)}
    theirs |= {"CT_v2": ("CTNormalization", False), "none": ("NoNormalization", False)}
    found = [theirs.get(LATE.get(scheme, scheme)) for scheme in schemes]
    if None in found:
        raise ValueError(f"nnU-Net v2 has no normalization {schemes[found.index(None)]}.")
    names, masks = zip(*[pair for pair in found if pair is not None])
    return {"normalization_schemes": list(names), "use_mask_for_norm": list(masks)}


def _resampling() -> dict[str, Any]:
    """Return the resampling of images, labels and results, which is that of bundles."""
    result: dict[str, Any] = {}
    for what, order in (*ORDERS.items(), ("seg", 1)):
        options = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        result |= {f"resampling_fn_{what}": RESAMPLING, f"resampling_fn_{what}_kwargs": options}
    return result


def _dataset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``dataset.json``."""
    labels = {name: value for value, name in enumerate(settings["labels"])}
    if len(labels) != settings["out_channels"]:
        raise ValueError(f"the names of the {settings['out_channels']} classes are {settings['labels']}.")
    if settings["ignore_label"] is not None:
        labels[IGNORE] = settings["ignore_label"]
    return {
        "channel_names": {str(number): name for number, name in enumerate(settings["channel_names"])},
        "labels": labels,
        "numTraining": len(settings["training_ids"]),
        "file_ending": ".nii.gz",
    }


def _checkpoint(
    weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], plans: dict, dataset: dict, trainer: str
) -> dict[str, Any]:
    """Return what nnU-Net stores, without the state of a training, which can therefore not be continued."""
    arguments = {
        "plans": plans,
        "configuration": CONFIGURATION,
        "fold": settings["fold"],
        "dataset_json": dataset,
        "device": torch.device("cpu"),
        "training_cases": settings["training_cases"],
        "training_ids": settings["training_ids"],
    }
    return {
        "network_weights": from_file_axes(weights, plans),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": arguments,
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def _notes(settings: Mapping[str, Any]) -> list[str]:
    late = sorted(set(settings["normalization"]) & set(LATE))
    notes = [
        "nnU-Net v2 averages the outputs of the network, bundles its probabilities, so that single voxels may differ."
    ]
    if late:
        notes.append(
            f"nnU-Net v2 normalizes before resampling, this training ({', '.join(late)}) did so after it: the results "
            "may differ slightly, unless images have the spacing of the training."
        )
    if settings["regions"]:
        notes.append("The regions are not part of it: nnU-Net v2 writes the classes.")
    return notes
