"""Checkpoints of nnU-Net v2, which the trainers of ``mednext_monai.nnunet`` write: the axes and settings of a network.

Source: the files of nnunetv2 2.8 (``nnUNetTrainer.save_checkpoint``, ``PlansManager``, ``DefaultPreprocessor``). The
package nnunetv2 is not needed, and nothing in a checkpoint is executed.

Axes: nnU-Net's arrays are ordered (z, y, x) and then transposed as its plans say; this package's are (x, y, z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .description import describe
from .state_dict import find_state_dict

__all__ = [
    "file_axes",
    "from_file_axes",
    "is_nnunet",
    "nnunet_plans",
    "nnunet_settings",
    "nnunet_title",
    "resolve_configuration",
    "to_file_axes",
]

READERS = {  # the orientation to which each of nnU-Net's readers turns an image; None: the axes of the file
    "SimpleITKIO": None,
    "NibabelIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
SCHEMES = {  # without and with the mask of the nonzero region
    "ZScoreNormalization": ("zscore_v2", "masked_zscore_v2"),
    "CTNormalization": ("CT_v2", "CT_v2"),
    "NoNormalization": ("none", "none"),
}
RESAMPLING = "resample_data_or_seg_to_shape"
ORDERS = {"data": 3, "probabilities": 1}  # of the interpolation
STATISTICS = {"mean": "mean", "sd": "std", "p005": "percentile_00_5", "p995": "percentile_99_5"}
IGNORE = "ignore"  # name of the label of voxels without annotation


def is_nnunet(checkpoint: Any) -> bool:
    """Return whether the content of a file is a checkpoint of nnU-Net v2."""
    return isinstance(checkpoint, Mapping) and "network_weights" in checkpoint and "init_args" in checkpoint


def nnunet_title(checkpoint: Mapping) -> str:
    """Return what a checkpoint of nnU-Net v2 says about itself: trainer, plans and configuration."""
    arguments = checkpoint["init_args"]
    plans = arguments.get("plans") if isinstance(arguments, Mapping) else None
    name = plans.get("plans_name") if isinstance(plans, Mapping) else None
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    return f"trainer {checkpoint.get('trainer_name')}, plans {name}, configuration {configuration}"


def nnunet_plans(checkpoint: Mapping, path: str | Path) -> Mapping[str, Any]:
    """
    Return the plans in a checkpoint of nnU-Net v2.

    Raises:
        ValueError: naming the file, if it has none.
    """
    plans = checkpoint["init_args"].get("plans") if isinstance(checkpoint["init_args"], Mapping) else None
    if not isinstance(plans, Mapping):
        raise ValueError(f"{path}: its init_args have no plans, as every checkpoint of nnU-Net v2 has.")
    return plans


def file_axes(plans: Mapping[str, Any]) -> tuple[int, int, int]:
    """
    Return the axis of nnU-Net's transposed arrays that is x, y and z of the file.

    Args:
        plans: the plans; ``transpose_backward`` is the axis of the transposed array that is z, y and x of the file.

    Raises:
        ValueError: if ``transpose_backward`` is not an order of three axes.
    """
    backward = plans.get("transpose_backward")
    if not isinstance(backward, Sequence) or sorted(backward) != [0, 1, 2]:
        raise ValueError(f"transpose_backward of the plans must be an order of the axes 0, 1 and 2, got {backward!r}.")
    return backward[2], backward[1], backward[0]


def to_file_axes(state_dict: Mapping[str, torch.Tensor], plans: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    Reorder the axes of 3D kernels from those of nnU-Net's arrays to (x, y, z).

    For an array with its axes in the same way reordered the network then returns the reordered output.

    Raises:
        ValueError: as :py:func:`file_axes`.
    """
    return _permute(state_dict, file_axes(plans))


def from_file_axes(state_dict: Mapping[str, torch.Tensor], plans: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Undo :py:func:`to_file_axes`."""
    axes = file_axes(plans)
    return _permute(state_dict, [axes.index(axis) for axis in range(3)])


def _permute(state_dict: Mapping[str, torch.Tensor], axes: Sequence[int]) -> dict[str, torch.Tensor]:
    order = (0, 1, *(2 + axis for axis in axes))
    return {
        name: tensor.permute(order).contiguous() if tensor.ndim == len(order) else tensor
        for name, tensor in state_dict.items()
    }


def resolve_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """
    Return a configuration of the plans, with what it inherits from others (``inherits_from``).

    Raises:
        ValueError: if there is no such configuration, listing all, or if it inherits from itself.
    """
    configurations, chain = plans.get("configurations", {}), []
    following: Any = name
    while following is not None:
        if following not in configurations or following in chain:
            problem = "inherits from itself" if following in chain else f"is none of {sorted(configurations)}"
            raise ValueError(f"configuration {following!r} of the plans {plans.get('plans_name')!r} {problem}.")
        chain.append(following)
        following = configurations[following].get("inherits_from")
    return {key: value for one in reversed(chain) for key, value in configurations[one].items()}


def nnunet_settings(checkpoint: Mapping, path: str | Path) -> dict[str, Any]:
    """
    Return what a checkpoint of nnU-Net v2 says about its training, as settings that weights of a bundle carry.

    They come from the plans and the ``dataset.json`` that nnU-Net stores in every checkpoint: classes, channels,
    spacing, patch size, normalization in nnU-Net v2's order (the ``_v2`` schemes), orientation and ignore label, all in
    the order of axes of this package.

    Args:
        checkpoint: the content of the file.
        path: the file, for messages.

    Raises:
        ValueError: naming the file and the setting, if a bundle cannot do what nnU-Net does: regions, a cascade, 2D,
            other normalizations, resampling or readers; or if the checkpoint is incomplete.
    """
    try:
        plans, arguments = nnunet_plans(checkpoint, path), checkpoint["init_args"]
        configuration, dataset = resolve_configuration(plans, arguments["configuration"]), arguments["dataset_json"]
        _check_pipeline(plans, configuration)
        axes = file_axes(plans)
        labels, ignore_label = _labels(dataset["labels"])
        channels = dataset["channel_names"] if "channel_names" in dataset else dataset["modality"]
        description = describe(find_state_dict(checkpoint["network_weights"], path))
        return {
            "in_channels": len(channels),
            "out_channels": len(labels),
            "spacing": [float(configuration["spacing"][axis]) for axis in axes],
            "orientation": READERS[plans["image_reader_writer"]],
            "normalization": _normalization(configuration, len(channels)),
            "intensity": _intensity(plans, configuration),
            "patch_size": [int(configuration["patch_size"][axis]) for axis in axes],
            "regions": None,
            "ignore_label": ignore_label,
            "variant": description.variant,
            "kernel_size": description.encoder_kernel_size,
            "channel_names": [str(name) for name in channels.values()],
            "labels": labels,
            "fold": arguments["fold"],
            "training_cases": arguments.get("training_cases", "not known"),
            "training_ids": list(arguments.get("training_ids", [])),
            "package_version": None,
            "versions": {},
            "hardware": {},
            "trainer": str(checkpoint.get("trainer_name")),
        }
    except KeyError as error:
        raise ValueError(f"{path}: this checkpoint of nnU-Net v2 lacks {error}.") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def _check_pipeline(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Raise if nnU-Net prepares images, or restores their grid, in a way that bundles do not have."""
    allowed: list[tuple[str, Any, Sequence[Any]]] = [
        ("image_reader_writer", plans["image_reader_writer"], list(READERS)),
        ("label_manager", plans.get("label_manager", "LabelManager"), ["LabelManager"]),
        ("preprocessor_name", configuration["preprocessor_name"], ["DefaultPreprocessor"]),
        ("previous_stage", configuration.get("previous_stage"), [None]),
        ("the number of axes of patch_size", len(configuration["patch_size"]), [3]),
        ("the number of axes of spacing", len(configuration["spacing"]), [3]),
    ]
    for what, order in ORDERS.items():
        allowed.append((f"resampling_fn_{what}", configuration[f"resampling_fn_{what}"], [RESAMPLING]))
        options = configuration[f"resampling_fn_{what}_kwargs"]
        for key, value in {"order": order, "order_z": 0, "force_separate_z": None, "is_seg": False}.items():
            allowed.append((f"{key} of resampling_fn_{what}_kwargs", options.get(key, value), [value]))
    for key, found, values in allowed:
        if found not in values:
            raise ValueError(
                f"{key} is {found!r}, which bundles do not have (they have {', '.join(map(repr, values))}), so that "
                "their result would not be nnU-Net's."
            )


def _labels(labels: Mapping[str, Any]) -> tuple[list[str], int | None]:
    """Return the names of the classes, background first, and the ignore label."""
    values = {
        name: value[0] if isinstance(value, Sequence) and len(value) == 1 else value for name, value in labels.items()
    }
    regions = [name for name, value in values.items() if isinstance(value, Sequence)]
    if regions:
        raise ValueError(
            f"it was trained on regions ({', '.join(regions)}), one sigmoid for each, while bundles have exclusive "
            "classes."
        )
    ignore_label = values.pop(IGNORE, None)
    names = sorted(values, key=lambda name: values[name])
    if [values[name] for name in names] != list(range(len(names))):
        raise ValueError(f"labels must be 0, 1, 2, ..., got {values}.")
    return names, ignore_label


def _normalization(configuration: Mapping[str, Any], channels: int) -> list[str]:
    names, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if not len(names) == len(masked) == channels:
        raise ValueError(
            f"normalization_schemes and use_mask_for_norm must have an item for each of the {channels} channels, got "
            f"{names} and {masked}."
        )
    unknown = [name for name in names if name not in SCHEMES]
    if unknown:
        raise ValueError(f"the normalization {unknown[0]} is none that bundles have ({', '.join(SCHEMES)}).")
    return [SCHEMES[name][bool(use_mask)] for name, use_mask in zip(names, masked)]


def _intensity(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the statistics of the CT channels."""
    key = "foreground_intensity_properties_per_channel"
    found = plans[key] if key in plans else plans["foreground_intensity_properties_by_modality"]  # its older name
    return {
        channel: {ours: float(found[str(channel)][theirs]) for ours, theirs in STATISTICS.items()}
        for channel, name in enumerate(configuration["normalization_schemes"])
        if name == "CTNormalization"
    }
