"""Conversion of weights between the authors' code, nnU-Net v2, MONAI's ``MedNeXt`` and this package.

Sources: the layout of MIC-DKFZ/MedNeXt (Apache-2.0), whose names this package shares; MONAI 1.5 to 1.6's
``monai.networks.nets.MedNeXt``, whose S variant is the published one up to names.

Axes: the authors' arrays are ordered (z, y, x), MONAI's (x, y, z). Reversing the spatial axes of every kernel adapts a
network from one order to the other.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..networks import VARIANTS
from .description import NetworkDescription, describe, has_monai_names
from .nnunet import is_nnunet, nnunet_plans, nnunet_settings, nnunet_title, to_file_axes
from .settings import attach_settings, settings_of
from .state_dict import find_state_dict, is_original, plain_names, read_checkpoint, write_checkpoint

__all__ = ["Conversion", "convert", "from_monai", "reverse_spatial_axes", "to_monai"]

LAYOUTS = ("native", "monai")
# Name of the authors' trainer class.
TRAINER = re.compile(rf"nnUNetTrainerV2_MedNeXt_({'|'.join(VARIANTS)})_kernel(\d+)")
# From names here to names in MONAI's MedNeXt, which numbers decoder stages and heads from the lowest resolution up.
MODULES = (
    {f"enc_block_{i}": f"enc_stages.{i}" for i in range(4)}
    | {f"down_{i}": f"down_blocks.{i}" for i in range(4)}
    | {f"up_{i}": f"up_blocks.{3 - i}" for i in range(4)}
    | {f"dec_block_{i}": f"dec_stages.{3 - i}" for i in range(4)}
    | {f"out_{i}": f"out_blocks.{4 - i}" for i in range(1, 5)}
)
OTHER_NETWORK = (
    "MONAI's MedNeXt is the published network for S only: its downsampling blocks have the expansion ratio of the "
    "stage before them, the published ones that of the stage after them. B, M and L are therefore different networks, "
    "and their weights cannot be converted"
)


class Conversion(NamedTuple):
    """The result of :py:func:`convert`."""

    description: NetworkDescription
    path: Path
    notes: list[str]  # sentences for the user

    def __str__(self) -> str:
        return "\n".join([f"wrote {self.path}: {self.description}", *self.notes])


def convert(source: str | Path, output: str | Path, reverse_axes: bool | None = None, to: str = "native") -> Conversion:
    """
    Convert a checkpoint of the authors' code, of nnU-Net v2 or of MONAI's ``MedNeXt`` S into a plain state dict.

    Its kind, the variant and the kernel size are inferred from the tensors. The ``.pkl`` file beside a checkpoint of
    the authors' code is not needed; if present, the trainer's name in it is compared, without unpickling. The settings
    that a training of this package has stored in the source are kept, unless axes are reversed. A checkpoint of nnU-Net
    v2 contains its plans; the weights carry them as settings, so that a bundle preprocesses images as nnU-Net did.

    Args:
        source: an nnU-Net v1 ``.model``, an nnU-Net v2 ``.pth``, or any file that :py:func:`read_state_dict` takes.
        output: the file to write, usually ``model.pt``; an existing one is replaced only after success.
        reverse_axes: whether to reverse the spatial axes of the kernels. Defaults to ``None``: only for checkpoints of
            the authors' code, trained on arrays ordered (z, y, x); those of nnU-Net v2 are reordered as their plans
            say. With a value, only the weights of these are converted, without settings.
        to: ``"native"`` for this package, ``"monai"`` for MONAI's ``MedNeXt``, S only. Defaults to ``"native"``.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if it is not a checkpoint of a MedNeXt, if the other implementation has no such network, or if
            bundles cannot do what nnU-Net did, see :py:func:`~mednext_monai.weights.nnunet.nnunet_settings`.
    """
    source, output = Path(source), Path(output)
    if to not in LAYOUTS:
        raise ValueError(f"to must be one of {LAYOUTS}, got {to!r}.")
    content = read_checkpoint(source)
    raw = find_state_dict(content, source)
    if output.exists() and output.samefile(source):
        raise ValueError(f"output must differ from the source, got {output} for both.")
    original, state_dict, settings = is_original(raw), plain_names(raw), settings_of(raw)
    notes = ["The source has the tensor names of MONAI's MedNeXt."] if has_monai_names(state_dict) else []
    try:
        state_dict = from_monai(state_dict) if notes else state_dict
        description = describe(state_dict)
        if is_nnunet(content) and reverse_axes is None:
            settings, result = nnunet_settings(content, source), to_file_axes(state_dict, nnunet_plans(content, source))
            notes.append(_nnunet_note(content, settings))
        else:
            reverse_axes = original if reverse_axes is None else reverse_axes
            settings = None if reverse_axes else settings  # else they are those of the other order of axes
            result = reverse_spatial_axes(state_dict) if reverse_axes else state_dict
            notes += ["The settings of the training that the source carries were kept."] if settings else []
            notes.append(_axes_note(original, reverse_axes))
        result = to_monai(result) if to == "monai" else result
    except ValueError as error:
        raise ValueError(_naming(source, error)) from error
    notes += _compare_with_trainer(source.with_name(source.name + ".pkl"), description)
    write_checkpoint(result if settings is None else attach_settings(result, settings), output)
    return Conversion(description, output, notes)


def reverse_spatial_axes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Reverse the order of the spatial axes of every kernel: ``(O, I, Z, Y, X)`` becomes ``(O, I, X, Y, Z)``.

    For an array with reversed axes the network then returns the reversed output. Applying it twice changes nothing.
    2D kernels are transposed in the same way.
    """
    return {
        name: tensor.permute(0, 1, *reversed(range(2, tensor.ndim))).contiguous() if tensor.ndim > 2 else tensor
        for name, tensor in state_dict.items()
    }


def from_monai(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Return the weights of MONAI's ``MedNeXt`` under the names of this package.

    Raises:
        ValueError: if the expansion ratio changes between stages of the encoder (B, M, L), with the reason.
    """
    ratios = {
        name: weight.shape[0] // max(1, weight.shape[1])
        for name, weight in state_dict.items()
        if name.endswith("conv2.weight") and weight.ndim > 1
    }
    after = ["enc_stages.1.0", "enc_stages.2.0", "enc_stages.3.0", "bottleneck.0"]
    for level, stage in enumerate(after):
        down, below = f"down_blocks.{level}.conv2.weight", f"{stage}.conv2.weight"
        if down in ratios and below in ratios and ratios[down] != ratios[below]:
            raise ValueError(f"{OTHER_NETWORK} ({down} has ratio {ratios[down]}, {below} {ratios[below]}).")
    return _rename(state_dict, {theirs: ours for ours, theirs in MODULES.items()})


def to_monai(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Return the weights of a MedNeXt S under the names of MONAI's ``MedNeXt``.

    Raises:
        ValueError: if MONAI's class has no such network: expansion ratios that change between stages of the encoder
            (B, M, L), different kernel sizes in encoder and decoder, GRN.
    """
    description = describe(state_dict)
    if len(set(description.expansion_ratio[:5])) > 1:
        raise ValueError(f"{OTHER_NETWORK}; found {description}.")
    if description.encoder_kernel_size != description.decoder_kernel_size or description.use_grn:
        raise ValueError(f"MONAI's MedNeXt has one kernel size and a different GRN and cannot represent {description}.")
    return _rename(state_dict, MODULES)


def _rename(state_dict: Mapping[str, torch.Tensor], modules: Mapping[str, str]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        module = next((module for module in modules if name.startswith(f"{module}.")), "")
        renamed[modules.get(module, "") + name[len(module) :]] = tensor
    return renamed


def _naming(source: Path, error: ValueError) -> str:
    message = str(error)
    return message if message.startswith(str(source)) else f"{source}: {message}"


def _nnunet_note(content: Mapping, settings: Mapping) -> str:
    shown = ("in_channels", "out_channels", "spacing", "patch_size", "normalization", "fold")
    mirrored = content.get("inference_allowed_mirroring_axes")
    warning = (
        ""
        if mirrored is None or sorted(mirrored) == [0, 1, 2]
        else f" It was trained with mirror images along the axes {list(mirrored)} only: predict with `--mirror false`."
    )
    return (
        f"The source is a checkpoint of nnU-Net v2 ({nnunet_title(content)}); its kernels were reordered to (x, y, z), "
        f"and the weights carry its settings: {', '.join(f'{key} {settings[key]}' for key in shown)}.{warning}"
    )


def _axes_note(original: bool, reverse_axes: bool) -> str:
    kind = "a checkpoint of the authors' code, trained on arrays ordered (z, y, x)"
    return (
        f"The source is {'' if original else 'not '}{kind}; the spatial axes of the kernels were "
        f"{'reversed' if reverse_axes else 'kept'}."
    )


def _compare_with_trainer(path: Path, description: NetworkDescription) -> list[str]:
    """Compare the trainer's name in a ``.pkl`` with the description; the pickle is parsed, never executed."""
    if not path.is_file():
        return []
    try:
        texts = (argument for _, argument, _ in pickletools.genops(path.read_bytes()) if isinstance(argument, str))
        match = next(filter(None, map(TRAINER.search, texts)), None)
    except Exception as error:  # genops on a file that is not a pickle
        return [f"{path.name} beside it could not be parsed and was not used ({type(error).__name__})."]
    if match is None:
        return [f"{path.name} beside it does not name a MedNeXt trainer."]
    kernel_sizes = {description.encoder_kernel_size, description.decoder_kernel_size}
    if (match[1], {int(match[2])}) != (description.variant, kernel_sizes):
        warnings.warn(f"{path} names the trainer {match[0]}, but the tensors are of {description}.", stacklevel=3)
    return [f"{path.name} beside it names the trainer {match[0]}; it was not unpickled."]
