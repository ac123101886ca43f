"""The whole MedNeXt in evaluation mode on the CPU: the same function in a fraction of the time and memory.

Activations are channels-last volumes ``(D, H, W, C)`` in a workspace that is kept between calls. One sample after the
other passes through the network; every volume of the encoder is changed in place, kept as the skip connection, and then
becomes the decoder's. What a block saves is said in ``depthwise`` and ``pointwise``.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ..backend import get_backend
from ..blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from .depthwise import Phase, depthwise_slabs, slab_ranges, transposed_phases
from .observers import is_observed
from .pointwise import ChannelStatistics, expand_compress, folded_weights
from .structure import is_exactly, is_pointwise, is_published_block
from .workspace import Workspace, borrowed_workspace

__all__ = ["applies", "infer"]

LEVELS = 4


def applies(network: nn.Module, x: torch.Tensor) -> bool:
    """
    Return whether :py:func:`infer` gives what the modules of ``network`` would give for ``x``.

    It does in evaluation mode on the CPU in float32, where no gradient is asked for, nothing observes or transforms
    the operations, and the network consists of the unaltered 3D blocks with one norm group per channel and no GRN.
    """
    return (
        get_backend() == "auto"
        and not network.training
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and type(x) in (torch.Tensor, nn.Parameter, MetaTensor)
        and not is_observed()
        and _is_plain(x)
        and _has_published_structure(network)
        and all(_is_plain(p) and type(p) in (torch.Tensor, nn.Parameter) for p in network.parameters())
    )


def _is_plain(x: torch.Tensor) -> bool:
    """Whether ``x`` is an ordinary float32 tensor on the CPU that needs no gradient now."""
    dense = x.device.type == "cpu" and x.dtype == torch.float32 and x.layout == torch.strided and not x.is_neg()
    return dense and not (x.requires_grad and torch.is_grad_enabled())


def _has_published_structure(network: nn.Module) -> bool:
    """Whether the network is made of the unaltered modules, whose channel numbers fit each other."""
    levels = range(LEVELS)
    encoder = [getattr(network, f"enc_block_{level}") for level in levels]
    decoder = [getattr(network, f"dec_block_{level}") for level in levels]
    down = [getattr(network, f"down_{level}") for level in levels]
    up = [getattr(network, f"up_{level}") for level in levels]
    kinds = [(network.stem, nn.Conv3d), (network.out_0, MedNeXtOutBlock)]
    kinds += [(stage, nn.Sequential) for stage in (*encoder, network.bottleneck, *decoder)]
    kinds += [(block, MedNeXtDownBlock) for block in down] + [(block, MedNeXtUpBlock) for block in up]
    kinds += [(block, MedNeXtBlock) for stage in (*encoder, network.bottleneck, *decoder) for block in stage]
    if network.spatial_dims != 3 or not all(is_exactly(module, kind) for module, kind in kinds):
        return False
    head = network.out_0.conv_out
    if not (is_pointwise(network.stem, nn.Conv3d) and is_pointwise(head, nn.ConvTranspose3d)):
        return False
    width = [network.stem.out_channels] + [block.conv3.out_channels for block in down]
    stages = list(zip((*encoder, network.bottleneck, *decoder), (*width, *width[:LEVELS])))
    return (
        head.in_channels == width[0]
        and all(is_published_block(block, nn.Conv3d, 1, n, n) for stage, n in stages for block in stage)
        and all(is_published_block(down[i], nn.Conv3d, 2, width[i], width[i + 1]) for i in levels)
        and all(is_published_block(up[i], nn.ConvTranspose3d, 2, width[i + 1], width[i]) for i in levels)
        and all(block.conv1.kernel_size[0] > 1 for block in up)
    )


def infer(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """
    Compute what ``network``, a :py:class:`mednext_monai.networks.MedNeXt` in evaluation mode, gives for ``x``.

    Args:
        network: one for which :py:func:`applies` with this ``x``.
        x: ``(B, in_channels, D, H, W)``; a ``MetaTensor`` gives a ``MetaTensor``.

    Returns:
        logits ``(B, out_channels, D, H, W)``, in memory of their own.
    """
    images = x.as_tensor() if isinstance(x, MetaTensor) else x
    with torch.no_grad(), borrowed_workspace(network) as workspace:
        logits = images.new_empty((x.shape[0], network.out_0.conv_out.out_channels, *x.shape[2:]))
        for image, target in zip(images, logits):
            _infer_one(network, image, target, workspace)
    return MetaTensor(logits).copy_meta_from(x) if isinstance(x, MetaTensor) else logits


def _infer_one(network: nn.Module, image: torch.Tensor, logits: torch.Tensor, workspace: Workspace) -> None:
    sizes = tuple(image.shape[1:])
    features = workspace.take("level 0", (*sizes, network.stem.out_channels))
    _stem(network.stem, image, features)
    volumes = []
    for level in range(LEVELS):
        _stage(getattr(network, f"enc_block_{level}"), features, workspace)
        volumes.append(features)
        down = getattr(network, f"down_{level}")
        sizes = tuple(size // 2 for size in sizes)
        features = workspace.take(f"level {level + 1}", (*sizes, down.conv3.out_channels))
        _down(down, volumes[level], features, workspace)
    _stage(network.bottleneck, features, workspace)
    for level in reversed(range(LEVELS)):
        _add_up(getattr(network, f"up_{level}"), features, volumes[level], workspace)
        features = volumes[level]
        _stage(getattr(network, f"dec_block_{level}"), features, workspace)
    head = network.out_0.conv_out
    torch.addmm(head.bias.unsqueeze(1), head.weight.flatten(1).t(), _rows(features).t(), out=logits.flatten(1))


def _rows(volume: torch.Tensor) -> torch.Tensor:
    """The voxels ``(V, C)`` of a volume ``(D, H, W, C)``: a view where it is contiguous."""
    return volume.reshape(-1, volume.shape[-1])


def _stem(stem: nn.Module, image: torch.Tensor, out: torch.Tensor) -> None:
    for plane, target in zip(image.unbind(1), out):
        torch.addmm(stem.bias, plane.flatten(1).t(), stem.weight.flatten(1).t(), out=_rows(target))


def _stage(blocks: nn.Sequential, x: torch.Tensor, workspace: Workspace) -> None:
    """Replace ``x``, ``(D, H, W, C)``, by what the blocks make of it."""
    for block in blocks:
        y = workspace.take("depthwise", x.shape)
        weights = folded_weights(block, _depthwise(block, x, y))
        expand_compress(_rows(y), weights, _rows(x), block.use_residual, workspace)


def _depthwise(block: MedNeXtBlock | MedNeXtDownBlock, x: torch.Tensor, out: torch.Tensor) -> ChannelStatistics:
    """
    Put the block's depthwise convolution of ``x`` less a constant per channel into ``out``; return its statistics.

    The norm removes any constant, so the convolution's bias plays no part. Taking off the first slab's mean instead
    brings the values near zero, where folding the norm costs no digits.
    """
    conv = block.conv1
    statistics = ChannelStatistics()
    pivot = x.new_zeros(conv.out_channels)
    for start, stop, slab in depthwise_slabs(x, conv.weight, pivot, conv.padding, conv.stride[0]):
        if start == 0:
            torch.mean(slab, dim=(0, 1, 2), out=pivot).neg_()
            torch.add(slab, pivot, out=out[start:stop])
        else:
            out[start:stop].copy_(slab)
        statistics.add(_rows(out[start:stop]))
    return statistics


def _down(block: MedNeXtDownBlock, x: torch.Tensor, out: torch.Tensor, workspace: Workspace) -> None:
    """Put the down-sampling block's value at ``x`` into ``out``."""
    y = workspace.take("depthwise", (*out.shape[:3], x.shape[3]))
    weights = folded_weights(block, _depthwise(block, x, y))
    residual = block.res_conv
    if residual is not None:
        for plane, target in zip(x[::2, ::2, ::2], out):
            torch.addmm(residual.bias, _rows(plane), residual.weight.flatten(1).t(), out=_rows(target))
    expand_compress(_rows(y), weights, _rows(out), residual is not None, workspace)


def _add_up(block: MedNeXtUpBlock, x: torch.Tensor, out: torch.Tensor, workspace: Workspace) -> None:
    """
    Add the up-sampling block's value at ``x`` to ``out``, the skip connection.

    The block puts a plane of zeros before the first plane of each axis: parity 0 lands on odd voxels, parity 1 on even
    ones from 2 on. The transposed 1x1 residual reaches the voxels of parity (0, 0, 0); the others get its bias. The
    depthwise convolution is needed twice, for the statistics and for use: as many phases as the memory for depthwise
    values holds are kept, the others computed again.
    """
    pivot = x.new_zeros(x.shape[3])
    statistics = ChannelStatistics()
    phases = transposed_phases(block.conv1.weight)
    kept = _phase_memory(phases, x, workspace.take("depthwise", (out.numel(),)))
    for i, phase in enumerate(phases):
        for start, stop, slab in depthwise_slabs(x, phase.weight, pivot, phase.padding):
            if statistics.is_empty:
                torch.mean(slab, dim=(0, 1, 2), out=pivot).neg_()
                slab = slab + pivot
            if i < len(kept):
                slab = kept[i][start:stop].copy_(slab)
            statistics.add(_rows(slab))
    weights = folded_weights(block, statistics)
    residual = block.res_conv
    if residual is not None:
        weights = weights._replace(compress_bias=weights.compress_bias + residual.bias)
    for i, phase in enumerate(phases):
        if i < len(kept):
            slabs = ((start, stop, kept[i][start:stop]) for start, stop in slab_ranges(kept[i].shape))
        else:
            slabs = depthwise_slabs(x, phase.weight, pivot, phase.padding)
        for start, stop, slab in slabs:
            value = workspace.take("increment", (*slab.shape[:3], out.shape[3]))
            expand_compress(_rows(slab), weights, _rows(value), False, workspace)
            if residual is not None and phase.parity == (0, 0, 0):
                _rows(value).addmm_(_rows(x[start:stop]), residual.weight.flatten(1))
            planes, lines, voxels = phase.parity
            out[1 + planes :: 2, 1 + lines :: 2, 1 + voxels :: 2][start:stop].add_(value)


def _phase_memory(phases: list[Phase], x: torch.Tensor, memory: torch.Tensor) -> list[torch.Tensor]:
    """Divide flat ``memory`` into volumes for the first phases of ``x``, as many as fit."""
    volumes, used = [], 0
    for shape in (phase.output_shape(x) for phase in phases):
        size = math.prod(shape)
        if used + size > memory.numel():
            break
        volumes.append(memory[used : used + size].view(shape))
        used += size
    return volumes
