"""UpKern: initializing a network with large kernels from a trained network with small kernels.

Source: Roy et al., MICCAI 2023, section 2.3 (https://arxiv.org/abs/2303.09975), and the behavior of the authors' code
(MIC-DKFZ/MedNeXt): depthwise kernels are interpolated trilinearly (bilinearly in 2D) with ``align_corners=False`` and
without rescaling, everything else is copied, segmentation heads included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .description import compare_shapes, summarize
from .state_dict import plain_names, unwrap_parallel

__all__ = ["UpKernReport", "upkern"]

STEM, STEM_WEIGHT = "stem.", "stem.weight"
HEADS = "out_"
AUXILIARY_HEADS = ("out_1.", "out_2.", "out_3.", "out_4.")  # a network without deep supervision has none
MODES = {4: "bilinear", 5: "trilinear"}  # by the dimensions of a convolution's weight


class UpKernReport(NamedTuple):
    """The names of the tensors, by what was done with them."""

    copied: list[str]
    interpolated: list[str]
    skipped: list[str]  # not taken from the checkpoint: as requested, or heads that the network does not have
    missing: list[str]  # heads that the checkpoint does not have: left as initialized

    def __str__(self) -> str:
        text = f"UpKern: {len(self.copied)} tensors copied, {len(self.interpolated)} kernels interpolated"
        if self.skipped:
            text += f"; skipped: {', '.join(self.skipped)}"
        if self.missing:
            text += f"; not in the checkpoint, left as initialized: {', '.join(self.missing)}"
        return text


def upkern(
    pretrained: Mapping[str, torch.Tensor] | torch.nn.Module,
    network: torch.nn.Module,
    skip_heads: bool = False,
    skip_stem: bool | None = False,
) -> UpKernReport:
    """
    Initialize a network from a trained one of the same variant with another kernel size, larger or smaller.

    Only weights are taken over. Optimizer, learning rate schedule and epoch start anew.

    Args:
        pretrained: the trained network or its state dict, as :py:func:`read_state_dict` returns it.
        network: the network to initialize in place, 2D or 3D, wrapped by DataParallel or DistributedDataParallel or
            not. Its device and data types are kept.
        skip_heads: whether the segmentation heads ``out_0`` to ``out_4`` keep their initial weights, for a task with
            different classes. Defaults to ``False``.
        skip_stem: whether the first convolution keeps its initial weights, for a task with a different number of
            image channels; ``None``: if that number differs. Defaults to ``False``.

    Returns:
        The names of the tensors copied, interpolated, skipped and missing. Only auxiliary heads may be missing, if
        the network has deep supervision and the trained one had none.

    Raises:
        ValueError: if tensors differ in more than the kernel size, because of another number of classes or channels or
            another variant, naming them with both shapes. The network is then unchanged.
    """
    source = pretrained.state_dict() if isinstance(pretrained, torch.nn.Module) else pretrained
    network = unwrap_parallel(network)
    source, target = plain_names(source), network.state_dict()
    if skip_stem is None:
        skip_stem = STEM_WEIGHT in source and source[STEM_WEIGHT].shape != target[STEM_WEIGHT].shape
    prefixes = ((HEADS,) if skip_heads else ()) + ((STEM,) if skip_stem else ())
    report, new = UpKernReport([], [], [], []), {}
    matches = True
    for name, tensor in target.items():
        if name.startswith(prefixes):
            report.skipped.append(name)
        elif name not in source:
            report.missing.append(name)
            matches = matches and name.startswith(AUXILIARY_HEADS)
        elif source[name].shape == tensor.shape:
            report.copied.append(name)
            new[name] = source[name]
        elif _differs_in_kernel_only(source[name], tensor):
            report.interpolated.append(name)
            new[name] = _interpolate(source[name], tensor)
        else:
            matches = False
    unused = [name for name in source if name not in target]
    report.skipped.extend(unused)
    if not matches or not all(name.startswith(AUXILIARY_HEADS + prefixes) for name in unused):
        raise ValueError(_mismatch(source, target, prefixes))
    network.load_state_dict({**target, **new})
    return report


def _differs_in_kernel_only(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.ndim == other.ndim and one.ndim in MODES and one.shape[:2] == other.shape[:2]


def _interpolate(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize the kernel of a weight ``(C, 1, *kernel)``; its sum changes, the norm that follows absorbs the scale."""
    return F.interpolate(weight.float(), size=like.shape[2:], mode=MODES[weight.ndim], align_corners=False)


def _mismatch(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], skipped: tuple[str, ...]) -> str:
    """Return a message that describes both networks and lists the tensors that do not match."""

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
        f"the checkpoint ({summarize(source)}) does not match the network ({summarize(target)}):\n{differences}\n"
        "Only kernel sizes may differ. For different classes use skip_heads=True, for different image channels "
        "skip_stem=True (for a bundle, --pretrained does both); another variant cannot be used."
    )
