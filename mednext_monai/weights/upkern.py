"""UpKern: a network with large kernels starts from a trained network with small ones.

Source: Roy et al., MICCAI 2023, section 2.3 (https://arxiv.org/abs/2303.09975), and the behaviour of the authors' code
(MIC-DKFZ/MedNeXt): depthwise kernels are interpolated trilinearly (bilinearly in 2D) with ``align_corners=False`` and
without rescaling, everything else is copied, segmentation heads included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .describe import compare_shapes, describe
from .state_dict import plain_names

__all__ = ["UpKernReport", "upkern"]

STEM = "stem."
HEADS = "out_"
AUXILIARY_HEADS = ("out_1.", "out_2.", "out_3.", "out_4.")  # a network without deep supervision has none
MODES = {4: "bilinear", 5: "trilinear"}  # by the dimensions of a convolution's weight


class UpKernReport(NamedTuple):
    """What became of each tensor, by name."""

    copied: list[str]
    interpolated: list[str]
    skipped: list[str]  # not taken from the checkpoint: as asked for, or heads that the network does not have
    missing: list[str]  # heads that the checkpoint does not have: as initialised

    def __str__(self) -> str:
        text = f"UpKern: {len(self.copied)} tensors copied, {len(self.interpolated)} kernels interpolated"
        if self.skipped:
            text += f"; skipped: {', '.join(self.skipped)}"
        if self.missing:
            text += f"; not in the checkpoint, left as initialised: {', '.join(self.missing)}"
        return text


def upkern(
    pretrained: Mapping[str, torch.Tensor] | torch.nn.Module,
    network: torch.nn.Module,
    skip_heads: bool = False,
    skip_stem: bool = False,
) -> UpKernReport:
    """
    Initialise a network from a trained one of the same variant whose kernels have another size, larger or smaller.

    Optimiser, schedule and epoch are not part of it: what follows is a training from the start.

    Args:
        pretrained: the trained network or its state dict, as :py:func:`read_state_dict` returns it.
        network: the network to initialise, in place, 2D or 3D. Its device and data types stay.
        skip_heads: whether the segmentation heads ``out_0`` to ``out_4`` keep their initial weights, for a task with
            other classes. Defaults to ``False``.
        skip_stem: whether the first convolution keeps its initial weights, for a task with another number of image
            channels. Defaults to ``False``.

    Returns:
        The names of the tensors copied, interpolated, skipped and missing. Only auxiliary heads may be missing, when
        the network has deep supervision and the trained one had none.

    Raises:
        ValueError: when another class or channel count or another variant makes the tensors differ in more than the
            kernel size, naming them with both shapes. The network is then unchanged.
    """
    source = pretrained.state_dict() if isinstance(pretrained, torch.nn.Module) else pretrained
    source, target = plain_names(source), network.state_dict()
    prefixes = ((HEADS,) if skip_heads else ()) + ((STEM,) if skip_stem else ())
    report, new = UpKernReport([], [], [], []), {}
    fits = True
    for name, tensor in target.items():
        if name.startswith(prefixes):
            report.skipped.append(name)
        elif name not in source:
            report.missing.append(name)
            fits = fits and name.startswith(AUXILIARY_HEADS)
        elif source[name].shape == tensor.shape:
            report.copied.append(name)
            new[name] = source[name]
        elif _differs_in_kernel_only(source[name], tensor):
            report.interpolated.append(name)
            new[name] = _interpolate(source[name], tensor)
        else:
            fits = False
    left_over = [name for name in source if name not in target]
    report.skipped.extend(left_over)
    if not fits or not all(name.startswith(AUXILIARY_HEADS + prefixes) for name in left_over):
        raise ValueError(_misfit(source, target, prefixes))
    network.load_state_dict({**target, **new})
    return report


def _differs_in_kernel_only(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.ndim == other.ndim and one.ndim in MODES and one.shape[:2] == other.shape[:2]


def _interpolate(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize the kernel of a weight ``(C, 1, *kernel)``; sums are not kept, the norm that follows absorbs the scale."""
    return F.interpolate(weight.float(), size=like.shape[2:], mode=MODES[weight.ndim], align_corners=False)


def _misfit(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], skipped: tuple[str, ...]) -> str:
    """Say what both networks are and which tensors keep one from being initialised with the other."""

    def relevant(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor
            for name, tensor in one.items()
            if not name.startswith(skipped)
            and (name in other or not name.startswith(AUXILIARY_HEADS))
            and not (name in other and _differs_in_kernel_only(tensor, other[name]))
        }

    differences = compare_shapes(
        relevant(source, target), relevant(target, source), found="in the checkpoint", wanted="in the network"
    )
    return (
        f"the checkpoint ({_kind(source)}) does not fit the network ({_kind(target)}):\n{differences}\n"
        "Only kernel sizes may differ. Other classes: skip_heads=True; other image channels: skip_stem=True; another "
        "variant cannot be used."
    )


def _kind(state_dict: Mapping[str, torch.Tensor]) -> str:
    try:
        return str(describe(state_dict))
    except ValueError:
        return "no MedNeXt"
