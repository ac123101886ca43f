"""The networks of an ensemble: those of this bundle and of others, and what each of them needs to see."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..networks import MedNeXt
from ..options import paths, plain
from .description import NetworkDescription, describe
from .locate import find_checkpoints
from .settings import PREPROCESSING, TASK, read_settings, same, task_settings
from .state_dict import is_placeholder, read_state_dict

__all__ = ["Group", "Members", "find_members"]

CONFIG = "configs/inference.json"  # in a bundle
IMAGE = "image"  # key of the image that this bundle's networks see


class Group(NamedTuple):
    """Networks that see one image in windows of one size, of volumes or of slices."""

    key: str  # of the image: "image", "image_1", ...; groups that differ only in the windows have the same
    preprocessing: dict[str, Any]  # spacing, orientation, normalization, intensity
    patch_size: list[int]
    members: list[int]  # their numbers
    slice_axis: int | None = None  # for networks of slices, the axis across them


class Members:
    """
    The networks of an ensemble. The first ones are those of this bundle.

    Args:
        checkpoints: their checkpoints.
        tasks: the settings of each, see :py:func:`~mednext_monai.weights.task_settings`.
        descriptions: the architectures of those of other bundles, which are the last ones. Defaults to none.

    Attributes:
        checkpoints: their checkpoints.
        groups: the members by what they see; the first group is that of this bundle.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        tasks: Sequence[Mapping[str, Any]],
        descriptions: Sequence[NetworkDescription] = (),
    ) -> None:
        self.checkpoints = list(checkpoints)
        self.groups = _groups(tasks)
        self._descriptions = list(descriptions)

    def other_networks(self, device: torch.device, memory_format: torch.memory_format) -> list[MedNeXt]:
        """Return networks for the checkpoints of other bundles, whose weights are loaded later."""
        networks = [MedNeXt(**description.network_arguments()) for description in self._descriptions]
        for network in networks:
            own = memory_format if network.spatial_dims == 3 else torch.contiguous_format
            network.to(device=device, memory_format=own)  # type: ignore[call-overload]
        return networks

    @property
    def member_numbers(self) -> list[list[int]]:
        """The numbers of the members of each group."""
        return [group.members for group in self.groups]

    @property
    def other_images(self) -> dict[str, dict[str, Any]]:
        """The preprocessing of each image that only networks of other bundles see, by its key."""
        return {group.key: group.preprocessing for group in self.groups if group.key != IMAGE}

    @property
    def other_keys(self) -> list[str]:
        """The key of the image of each group but the first."""
        return [group.key for group in self.groups[1:]]


def find_members(
    checkpoints: Sequence[str],
    task: Mapping[str, Any],
    bundle_root: str | Path,
    ensemble: str | Path | Sequence[str | Path] | None = None,
    fold: int | str | None = None,
    folds: Sequence[int | str] | None = None,
) -> Members:
    """
    Return the networks that an inference averages.

    The preprocessing and the window of the networks of another bundle are those that they were trained with, or if
    their checkpoint does not say, those of its ``configs/inference.json``. Their architecture is that of the tensors.

    Args:
        checkpoints: those of this bundle.
        task: the settings of this bundle, see :py:func:`~mednext_monai.weights.task_settings`.
        bundle_root: the folder of this bundle.
        ensemble: folders of other bundles; one that is named twice, or is this one, counts once. Defaults to ``None``.
        fold, folds: select the checkpoints of each of them, see :py:func:`find_checkpoints`. Default to ``None``.

    Raises:
        ValueError: if a folder is not a bundle, or if channels or classes of two bundles differ in number or, where
            both are known, in the names of the classes or the order of the channels, naming both bundles.
        FileNotFoundError: if a bundle has no weights of a fold.
    """
    known = {os.path.realpath(bundle_root)}
    all_checkpoints, tasks, descriptions = list(checkpoints), [task] * len(checkpoints), []
    for folder in paths(ensemble=ensemble):
        if os.path.realpath(folder) in known:
            continue
        known.add(os.path.realpath(folder))
        for checkpoint in _checkpoints(folder, fold, folds):
            settings, description = _settings(folder, checkpoint)
            _check_agreement(folder, checkpoint, settings, str(bundle_root), checkpoints[0], task)
            all_checkpoints.append(checkpoint)
            tasks.append(settings)
            descriptions.append(description)
    return Members(all_checkpoints, tasks, descriptions)


def _checkpoints(folder: str, fold: int | str | None, folds: Sequence[int | str] | None) -> list[str]:
    if not Path(folder, CONFIG).is_file():
        raise ValueError(f"ensemble: {folder} is not the folder of a bundle, it has no {CONFIG}.")
    try:
        found = find_checkpoints(None, f"{folder}/models", fold, folds)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"ensemble: {folder}: {error}") from error
    missing = [file for file in found if not Path(file).is_file() or is_placeholder(file)]
    if missing:
        raise FileNotFoundError(f"ensemble: {folder} has no weights at {missing[0]}; train it, or leave it out.")
    return found


def _settings(folder: str, checkpoint: str) -> tuple[dict[str, Any], NetworkDescription]:
    """Return the settings and the architecture of a network of another bundle."""
    try:
        description = describe(read_state_dict(checkpoint))
        stated = _stated(folder)
        if read_settings(checkpoint) is None:
            for key in ("in_channels", "out_channels"):
                stated[key] = getattr(description, key) if stated[key] is None else stated[key]
        settings = task_settings(stated, checkpoint)
        for key in ("in_channels", "out_channels"):
            if getattr(description, key) != settings[key]:
                raise ValueError(f"{checkpoint} is a {description}, but {key} is {settings[key]}.")
    except ValueError as error:
        raise ValueError(f"ensemble: {folder}: {error}") from error
    return settings, description


def _stated(folder: str) -> dict[str, Any]:
    """Return the settings in the config of a bundle, which must be values: nothing of another bundle is evaluated."""
    try:
        content = json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{CONFIG} is not a JSON file: {error}.") from error
    stated = {key: plain(content.get(key)) for key in TASK}
    for key, value in stated.items():
        if isinstance(value, str) and value.startswith(("$", "@", "%")):
            raise ValueError(f"{key} in {CONFIG} is the expression {value!r}, which is not evaluated; state its value.")
    return stated


def _check_agreement(
    folder: str, checkpoint: str, settings: Mapping, own_folder: str, own_checkpoint: str, own: Mapping
) -> None:
    for key in ("in_channels", "out_channels"):
        if settings[key] != own[key]:
            raise ValueError(
                f"ensemble: {folder} has {key} {settings[key]}, {own_folder} has {own[key]}: their probabilities "
                "cannot be averaged."
            )
    has_own = Path(own_checkpoint).is_file() and not is_placeholder(own_checkpoint)
    one, other = read_settings(checkpoint), read_settings(own_checkpoint) if has_own else None
    if one is None or other is None:
        return
    for key, what in (("labels", "the classes"), ("channel_names", "the channels")):
        names, own_names = list(one.get(key) or []), list(other.get(key) or [])
        # channels may be called anything, but the same ones must be in the same order
        comparable = names and own_names and (key == "labels" or sorted(names) == sorted(own_names))
        if comparable and names != own_names:
            raise ValueError(
                f"ensemble: {folder} was trained with {what} {names}, {own_folder} with {own_names}: their "
                "probabilities cannot be averaged."
            )


def _groups(tasks: Sequence[Mapping[str, Any]]) -> list[Group]:
    groups: list[Group] = []
    images: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        preprocessing = {key: task[key] for key in PREPROCESSING}
        windows = list(task["patch_size"]), task["slice_axis"]
        image = next((i for i, one in enumerate(images) if same(one, preprocessing)), len(images))
        if image == len(images):
            images.append(preprocessing)
        key = IMAGE if image == 0 else f"{IMAGE}_{image}"
        group = next((one for one in groups if (one.key, (one.patch_size, one.slice_axis)) == (key, windows)), None)
        if group is None:
            group = Group(key, images[image], windows[0], [], windows[1])
            groups.append(group)
        group.members.append(number)
    return groups
