"""The whole MedNeXt in evaluation mode on the CPU: the same function in a fraction of the time and memory.

Activations are channels-last volumes ``(D, H, W, C)``, of a 2D network ``(H, 1, W, C)``. One sample after the other
passes through the network; every volume of the encoder is changed in place, kept as the skip connection, and then
becomes the decoder's. That is why the whole network is computed here and not block by block, where every block needs a
volume for its output. What a block saves is explained in ``depthwise`` and ``pointwise``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ....memory import empty, release_with
from ...blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from ...mednext import MedNeXt
from .common import (
    CONVOLUTIONS,
    Block,
    block_parameters,
    is_exactly,
    is_observed,
    is_on_cpu,
    is_parameter_like,
    is_pointwise,
    is_published_block,
    keeps_metadata,
    lifted,
)
from .depthwise import Phase, depthwise_slabs, slab_ranges, transposed_phases
from .pointwise import ChannelStatistics, PointwiseWeights, as_rows, channel_means, expand_compress, fold_norm
from .precision import type_here

__all__ = ["has_published_structure", "run", "takes"]

LEVELS = 4  # of the encoder and of the decoder; the bottleneck is below


def takes(network: nn.Module, x: torch.Tensor) -> bool:
    """
    Return whether :py:func:`run` computes what the modules of ``network`` would compute for ``x``.

    It does for a MedNeXt in evaluation mode on the CPU in float32, also under autocast with bfloat16, if no gradient is
    asked for, nothing observes or transforms the operations, and the network consists of the unaltered blocks with one
    norm group per channel and no GRN.
    """
    return bool(
        isinstance(network, MedNeXt)
        and not network.training
        and not is_observed(allow_bfloat16=True)
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and (is_parameter_like(x) or type(x) is MetaTensor)
        and _needs_no_gradient(x)
        and has_published_structure(network)
        and all(_needs_no_gradient(p) and is_parameter_like(p) for p in network.parameters())
    )


def _needs_no_gradient(x: torch.Tensor) -> bool:
    """Return whether ``x`` is an ordinary float32 tensor on the CPU that needs no gradient now."""
    return is_on_cpu(x, torch.float32) and not (x.requires_grad and torch.is_grad_enabled())


def has_published_structure(network: MedNeXt) -> bool:
    """Return whether the network is made of the unaltered modules, whose channel numbers fit each other."""
    levels = range(LEVELS)
    encoder = [getattr(network, f"enc_block_{level}") for level in levels]
    decoder = [getattr(network, f"dec_block_{level}") for level in levels]
    down = [getattr(network, f"down_{level}") for level in levels]
    up = [getattr(network, f"up_{level}") for level in levels]
    plain, transposed = CONVOLUTIONS[network.spatial_dims]
    kinds = [(network.stem, plain), (network.out_0, MedNeXtOutBlock)]
    kinds += [(stage, nn.Sequential) for stage in (*encoder, network.bottleneck, *decoder)]
    kinds += [(block, MedNeXtDownBlock) for block in down] + [(block, MedNeXtUpBlock) for block in up]
    kinds += [(block, MedNeXtBlock) for stage in (*encoder, network.bottleneck, *decoder) for block in stage]
    if not all(is_exactly(module, kind) for module, kind in kinds):
        return False
    head = network.out_0.conv_out
    if not (is_pointwise(network.stem, plain) and is_pointwise(head, transposed)):
        return False
    width = [network.stem.out_channels] + [block.conv3.out_channels for block in down]
    stages = list(zip((*encoder, network.bottleneck, *decoder), (*width, *width[:LEVELS])))
    return (
        head.in_channels == width[0]
        and all(is_published_block(block, n, n) for stage, n in stages for block in stage)
        and all(is_published_block(down[i], width[i], width[i + 1]) for i in levels)
        and all(is_published_block(up[i], width[i + 1], width[i]) for i in levels)
        and all(block.conv1.kernel_size[0] > 1 for block in up)
    )


@keeps_metadata
def run(network: MedNeXt, x: torch.Tensor) -> torch.Tensor:
    """
    Compute a network that :py:func:`takes` accepts.

    Under autocast with bfloat16, weights and activations in 3D are bfloat16 if that is faster on this processor,
    float32 otherwise. Statistics, sums of products, stem and head are float32 always.

    Args:
        network: the network.
        x: ``(B, in_channels, D, H, W)``, or of a 2D network ``(B, in_channels, H, W)``.

    Returns:
        logits ``(B, out_channels, D, H, W)`` or ``(B, out_channels, H, W)``, float32, in memory of their own.
    """
    release_with(network)
    dtype = type_here(x)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        logits = x.new_empty((x.shape[0], network.out_0.conv_out.out_channels, *x.shape[2:]))
        for image, target in zip(lifted(x), lifted(logits)):
            _run_one(network, image, target, dtype)
    return logits


def _run_one(network: MedNeXt, image: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> None:
    """Put the logits ``(out_channels, D, H, W)`` of ``image``, ``(in_channels, D, H, W)``, into ``logits``."""
    width = [network.stem.out_channels] + [getattr(network, f"down_{i}").conv3.out_channels for i in range(LEVELS)]
    shapes = [(*(-(-size // 2**level) for size in image.shape[1:]), n) for level, n in enumerate(width)]
    volumes = [empty(shape, dtype) for shape in shapes]
    memory = empty([max(map(prod, shapes))], dtype)  # for the depthwise values of one block after the other
    _stem(network.stem, image, volumes[0])
    for level in range(LEVELS):
        _stage(getattr(network, f"enc_block_{level}"), volumes[level], memory)
        _down(getattr(network, f"down_{level}"), volumes[level], volumes[level + 1], memory)
    _stage(network.bottleneck, volumes[LEVELS], memory)
    for level in reversed(range(LEVELS)):
        _add_up(getattr(network, f"up_{level}"), volumes[level + 1], volumes[level], memory)
        _stage(getattr(network, f"dec_block_{level}"), volumes[level], memory)
    _head(network.out_0.conv_out, volumes[0], logits)


def _stem(stem: Any, image: torch.Tensor, out: torch.Tensor) -> None:
    matrix = stem.weight.flatten(1).t()
    for planes in slab_ranges(out.shape, image.dtype):
        rows, target = image[:, planes].flatten(1).t(), as_rows(out[planes])
        if out.dtype == image.dtype:
            torch.addmm(stem.bias, rows, matrix, out=target)
        else:
            target.copy_(torch.addmm(stem.bias, rows, matrix))


def _head(head: Any, x: torch.Tensor, logits: torch.Tensor) -> None:
    """Put the head's value at ``x``, ``(D, H, W, C)``, into ``logits``, ``(classes, D, H, W)``."""
    bias, matrix, out = head.bias.unsqueeze(1), head.weight.flatten(1).t(), logits.flatten(1)
    if x.dtype == logits.dtype:
        torch.addmm(bias, matrix, as_rows(x).t(), out=out)
        return
    for planes in slab_ranges(x.shape, logits.dtype):
        value = torch.addmm(bias, matrix, as_rows(x[planes]).float().t())
        logits[:, planes] = value.view(-1, *x[planes].shape[:3])


def _stage(blocks: nn.Sequential, x: torch.Tensor, memory: torch.Tensor) -> None:
    """Replace ``x``, ``(D, H, W, C)``, by what the blocks make of it."""
    block: Any
    for block in blocks:
        y = _view(memory, x.shape)
        weights = _depthwise(block, x, y)
        rows = as_rows(x)
        expand_compress(as_rows(y), weights, rows, rows if block.use_residual else None)


def _depthwise(block: MedNeXtBlock | MedNeXtDownBlock, x: torch.Tensor, out: torch.Tensor) -> PointwiseWeights:
    """
    Put the block's depthwise convolution of ``x`` less a constant per channel into ``out``; return what follows it.

    The norm removes any constant, so the convolution's bias plays no part. Subtracting the first slab's mean instead
    brings the values near zero, where folding the norm costs no digits.
    """
    conv = block.conv1
    weight, padding = _kernel(conv)
    statistics = ChannelStatistics()
    pivot = x.new_zeros(conv.out_channels)
    for planes, slab in depthwise_slabs(x, weight.to(x.dtype), pivot, padding, conv.stride[0]):
        if statistics.is_empty:
            pivot.copy_(channel_means(as_rows(slab))).neg_()
            torch.add(slab, pivot, out=out[planes])
        else:
            out[planes].copy_(slab)
        statistics.add(as_rows(out[planes]))
    return _weights(block, statistics, x.dtype)


def _kernel(conv: Any) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return the weight of a depthwise convolution of volumes, and its padding."""
    weight = lifted(conv.weight)
    return weight, tuple(size // 2 for size in weight.shape[2:])


def _weights(block: Block, statistics: ChannelStatistics, dtype: torch.dtype) -> PointwiseWeights:
    mean, scale = statistics.mean_and_scale(block.norm.eps)
    return fold_norm(block_parameters(block), scale, mean).to(dtype)


def _residual_matrix(block: MedNeXtDownBlock | MedNeXtUpBlock, dtype: torch.dtype) -> torch.Tensor | None:
    return None if block.res_conv is None else block.res_conv.weight.flatten(1).to(dtype)


def _down(block: MedNeXtDownBlock, x: torch.Tensor, out: torch.Tensor, memory: torch.Tensor) -> None:
    """Put the down-sampling block's value at ``x`` into ``out``."""
    y = _view(memory, (*out.shape[:3], x.shape[3]))
    weights = _depthwise(block, x, y)
    residual = _residual_matrix(block, x.dtype)
    if residual is not None:
        for plane, target in zip(x[::2, ::2, ::2], out):
            torch.mm(as_rows(plane), residual.t(), out=as_rows(target))
    rows = as_rows(out)
    expand_compress(as_rows(y), weights, rows, None if residual is None else rows)


def _add_up(block: MedNeXtUpBlock, x: torch.Tensor, out: torch.Tensor, memory: torch.Tensor) -> None:
    """
    Add the up-sampling block's value at ``x`` to ``out``, the skip connection.

    The block puts a plane of zeros before the first plane of each axis: parity 0 lands on odd voxels, parity 1 on even
    ones from 2 on. The transposed 1x1 residual reaches the voxels of parity (0, 0, 0); the others get its bias. The
    depthwise convolution is needed twice, for the statistics and for use: as many phases as ``memory`` holds are kept,
    the others computed again.
    """
    pivot = x.new_zeros(x.shape[3])
    statistics = ChannelStatistics()
    phases = transposed_phases(_kernel(block.conv1)[0].to(x.dtype))
    kept = _phase_memory(phases, x, memory[: out.numel()])
    for i, phase in enumerate(phases):
        for planes, slab in depthwise_slabs(x, phase.weight, pivot, phase.padding):
            if statistics.is_empty:
                pivot.copy_(channel_means(as_rows(slab))).neg_()
                slab = slab + pivot
            if i < len(kept):
                slab = kept[i][planes].copy_(slab)
            statistics.add(as_rows(slab))
    weights = _weights(block, statistics, x.dtype)
    matrix = _residual_matrix(block, x.dtype)
    for i, phase in enumerate(phases):
        slabs: Iterable[tuple[slice, torch.Tensor]]
        if i < len(kept):
            slabs = ((planes, kept[i][planes]) for planes in slab_ranges(kept[i].shape, x.dtype))
        else:
            slabs = depthwise_slabs(x, phase.weight, pivot, phase.padding)
        target = out[tuple(slice(1 + p, None, 2) if n > 1 else slice(1) for p, n in zip(phase.parity, out.shape))]
        residual = None if any(phase.parity) else matrix
        for planes, slab in slabs:
            value = empty((*slab.shape[:3], out.shape[3]), x.dtype)
            expand_compress(as_rows(slab), weights, as_rows(value))
            if residual is not None:
                as_rows(value).addmm_(as_rows(x[planes]), residual)
            target[planes].add_(value)
            del value  # its memory serves the next slab


def _phase_memory(phases: list[Phase], x: torch.Tensor, memory: torch.Tensor) -> list[torch.Tensor]:
    """Divide flat ``memory`` into volumes for the first phases of ``x``, as many as fit."""
    volumes, used = [], 0
    for shape in (phase.output_shape(x) for phase in phases):
        if used + prod(shape) > memory.numel():
            break
        volumes.append(_view(memory[used:], shape))
        used += prod(shape)
    return volumes


def _view(memory: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the beginning of flat ``memory`` as a contiguous tensor of ``shape``."""
    return memory[: prod(shape)].view(shape)
