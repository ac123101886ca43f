"""Depthwise 3D convolutions of channels-last volumes ``(D, H, W, C)`` and their gradients, for one sample.

Forward, a convolution is computed slab by slab along the first axis. A slab is small enough to stay in the processor's
cache until its consumer has read it. Channels-last is the layout for which oneDNN has a fast depthwise kernel.

PyTorch leaves transposed convolutions and the backward pass of grouped 3D convolutions to kernels that treat the groups
as dense blocks. These identities lead to fast depthwise kernels instead:

- Backward-data with stride 1 is the forward convolution with the kernel flipped along every axis.
- A 3D kernel is a sum over its first axis of 2D kernels, and the slices ``(H, W, C)`` of a volume are a batch of 2D
  images without a copy. Backward-weight, and backward-data with stride 2, are therefore sums of the 2D operations.
- The 2D backward-weight kernel takes rows of at most three taps. Wider kernels are taken three columns at a time, on
  copies whose rows are separated by zeros, so that shifting the flat memory shifts every row.
- The transposed convolution with stride 2 is the adjoint of the one with stride 2: ``backward_data`` is its forward
  pass, the convolution its backward-data, and ``backward_weight`` with the roles of input and gradient exchanged its
  backward-weight.
- The output voxels of one parity per axis of a transposed convolution with stride 2 are an ordinary convolution of the
  input with every second tap of the kernel, reversed. Eight parities are eight small convolutions without inserted
  zeros (``transposed_phases``), which inference uses: they need not be stored all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ....memory import empty

__all__ = ["Phase", "backward_data", "backward_weight", "depthwise_slabs", "slab_ranges", "transposed_phases"]

SLAB_ELEMENTS = 1 << 19  # values per output slab: 2 MiB of float32; twice as many in bfloat16
NARROW = 3  # taps in a row that the 2D backward-weight kernel takes


# --- forward ---------------------------------------------------------------------------------------------------------


def depthwise_slabs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], stride: int = 1
) -> Iterator[tuple[slice, torch.Tensor]]:
    """
    Convolve every channel with its own kernel.

    Args:
        x: ``(D, H, W, C)``, contiguous.
        weight: ``(C, 1, kD, kH, kW)``.
        bias: ``(C)`` or ``None``; read anew for every slab, so that it may be changed in between.
        padding: zeros on both sides of each spatial axis.
        stride: the same for the three axes. Defaults to 1.

    Yields:
        the planes of a slab, and their values ``(planes, H', W', C)``, which may have any strides.
    """
    sizes = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(x.shape, padding, weight.shape[2:])]
    if min(sizes) < 1:
        return
    volume = x.unsqueeze(0).permute(0, 4, 1, 2, 3)  # in this order, its strides say "channels last"
    for planes in slab_ranges((*sizes, x.shape[3]), x.dtype):
        source, pad = volume, padding[0]
        if planes.stop - planes.start < sizes[0]:
            first = planes.start * stride - pad
            source, pad = _input_planes(volume, first, (planes.stop - 1) * stride - pad + weight.shape[2]), 0
        y = _convolve(source, weight, bias, stride, (pad, *padding[1:]))
        yield planes, y[0].permute(1, 2, 3, 0)


def _convolve(
    volume: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: Sequence[int]
) -> torch.Tensor:
    """Convolve ``(1, C, D, H, W)``. PyTorch leaves kernels of one row of taps to a slow operator on a single thread."""
    if stride > 1 or any(padding) or weight.shape[3:].numel() > 1 or volume.dtype not in (torch.float32, torch.float64):
        return F.conv3d(volume, weight, bias, stride, tuple(padding), groups=volume.shape[1])
    size = volume.shape[2] - weight.shape[2] + 1
    first, *others = weight[:, 0].unbind(1)  # (C, 1, 1) each
    y = volume.narrow(2, 0, size) * first.unsqueeze(1)
    for tap, factor in enumerate(others, start=1):
        y.addcmul_(volume.narrow(2, tap, size), factor.unsqueeze(1))
    return y if bias is None else y.add_(bias.view(-1, 1, 1, 1))


def slab_ranges(shape: Sequence[int], dtype: torch.dtype) -> Iterator[slice]:
    """Yield the planes of each slab of a volume of ``shape``, ``(D, H, W, C)``, and type."""
    elements = 2 * SLAB_ELEMENTS if dtype == torch.bfloat16 else SLAB_ELEMENTS
    planes = max(1, elements // max(1, shape[1] * shape[2] * shape[3]))
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0]))


def _input_planes(volume: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return the planes ``first <= i < last`` of ``volume``, ``(1, C, D, H, W)``, zero where there are none."""
    before, after = max(-first, 0), max(last - volume.shape[2], 0)
    planes = volume.narrow(2, max(first, 0), last - first - before - after)
    return F.pad(planes, (0, 0, 0, 0, before, after)) if before or after else planes


class Phase(NamedTuple):
    """The output voxels of one parity per axis of a transposed convolution with stride 2."""

    parity: tuple[int, ...]
    weight: torch.Tensor  # (C, 1, taps, taps, taps) of the ordinary convolution that gives them
    padding: tuple[int, ...]

    def output_shape(self, x: torch.Tensor) -> tuple[int, ...]:
        """Return the shape ``(D', H', W', C)`` for ``x``, ``(D, H, W, C)``: an odd parity lacks the last plane."""
        return (*(size - parity for size, parity in zip(x.shape, self.parity)), x.shape[3])


def transposed_phases(weight: torch.Tensor) -> list[Phase]:
    """
    Take a transposed convolution with stride 2, odd kernel k >= 3 and padding k // 2 apart into eight convolutions.

    Output voxel ``o = 2 i + parity`` sums tap ``j`` times input voxel ``(o + k // 2 - j) / 2`` over the j for which
    that is an integer: for parity 0 an odd number of taps around i, for parity 1 an even number around i + 1/2. An axis
    of n voxels gives n outputs of parity 0 and n - 1 of parity 1.

    An axis of one voxel and one tap, as of an image that is lifted to a volume, only has parity 0.

    Args:
        weight: ``(C, 1, k, k, k)``, of the transposed convolution, or ``(C, 1, k, 1, k)``.

    Returns:
        the phases, those with the most taps first.
    """

    def taps(kernel: int, parity: int) -> list[int]:
        return [j for j in range(kernel) if (parity + kernel // 2 - j) % 2 == 0][::-1]

    phases = []
    for parity in product(*((0, 1) if kernel > 1 else (0,) for kernel in weight.shape[2:])):
        part, padding = weight, []
        for axis, p in enumerate(parity):
            chosen = taps(weight.shape[axis + 2], p)
            part = part.index_select(axis + 2, torch.tensor(chosen, device=weight.device))
            padding.append((len(chosen) - 1) // 2)
        phases.append(Phase(parity, part, tuple(padding)))
    return sorted(phases, key=lambda phase: phase.weight[0].numel(), reverse=True)


# --- backward --------------------------------------------------------------------------------------------------------


def backward_data(grad: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """
    Gradient of a depthwise convolution with stride 2 with respect to its input.

    Equally the forward pass of the transposed convolution with stride 2, whose input is ``grad``. (With stride 1 the
    gradient is ``depthwise_slabs`` with ``weight.flip(2, 3, 4)``.)

    Args:
        grad: gradient of the output, ``(D', H', W', C)``, contiguous.
        weight: ``(C, 1, k, k, k)``, odd ``k``, the convolution's padding being ``k // 2``; not bfloat16.
        out: where the gradient is put, ``(D, H, W, C)``; bfloat16 values are summed in the type of ``weight``.
    """
    grad = grad.to(weight.dtype)
    if out.dtype == weight.dtype:
        _add_data(grad, weight, out.zero_(), 0)
        return
    for planes in slab_ranges(out.shape, weight.dtype):
        slab = empty(out[planes].shape, weight.dtype).zero_()
        _add_data(grad, weight, slab, planes.start)
        out[planes] = slab


def _add_data(grad: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, start: int) -> None:
    """Add the gradient of the planes of the input from ``start`` on to ``out``."""
    images, gradients = _images(out), _images(grad)
    for tap in range(weight.shape[2]):
        planes, grad_planes = _slices(tap - weight.shape[2] // 2 - start, len(images), len(gradients), stride=2)
        target, source = images[planes], gradients[grad_planes]
        if len(source):
            like = torch.empty_like(target, memory_format=torch.channels_last)  # for its shape
            target += _backward_2d(source, like, weight[:, :, tap], 2, data=True)


def backward_weight(x: torch.Tensor, grad: torch.Tensor, stride: int, out: torch.Tensor) -> None:
    """
    Add the gradient of a depthwise convolution with respect to its weight to ``out``.

    Slabs of bfloat16 volumes are converted to the type of ``out``: PyTorch's kernels for bfloat16 are not faster, and
    return garbage for some sizes (torch 2.13: in 3D if an axis is not longer than the kernel, in 2D for one voxel).

    Args:
        x: the input, ``(D, H, W, C)``, contiguous.
        grad: gradient of the output, ``(D', H', W', C)``, contiguous.
        stride: 1 or 2, on every axis.
        out: ``(C, 1, k, k, k)``, odd ``k``, the convolution's padding being ``k // 2``; not bfloat16.
    """
    kernel_size = out.shape[2]
    if kernel_size > NARROW and stride == 1:
        _wide_weight(_images(x), _images(grad), out)
        return
    padding = kernel_size // 2
    planes = max(1, 2 * SLAB_ELEMENTS // max(1, stride**2 * grad[0].numel()))
    for start in range(0, len(grad), planes):
        stop = min(start + planes, len(grad))
        first = max(0, stride * start - padding)
        source, target = x[first : stride * (stop - 1) + padding + 1], grad[start:stop]
        if source.dtype != out.dtype:
            source, target = (empty(slab.shape, out.dtype).copy_(slab) for slab in (source, target))
        images, gradients = _images(source), _images(target)
        for tap in range(kernel_size):
            offset = tap - padding + stride * start - first
            used, grad_used = _slices(offset, len(images), len(gradients), stride)
            if len(gradients[grad_used]):
                part = _backward_2d(gradients[grad_used], images[used], out[:, :, tap], stride, data=False)
                out[:, :, tap] += part


def _images(volume: torch.Tensor) -> torch.Tensor:
    """Return a volume ``(D, H, W, C)`` as a channels-last batch of images ``(D, C, H, W)``."""
    return volume.permute(0, 3, 1, 2)


def _slices(offset: int, size: int, grad_size: int, stride: int) -> tuple[slice, slice]:
    """Return which indices of the input one tap meets, and which of the output: input = stride * output + offset."""
    first = max(0, -(offset // stride))  # the smallest output index whose input index is not negative
    last = max(first, min(grad_size, (size - 1 - offset) // stride + 1))
    return slice(stride * first + offset, stride * last + offset, stride), slice(first, last)


def _backward_2d(
    grad: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, stride: int, data: bool
) -> torch.Tensor:
    """Backward pass of a depthwise 2D convolution with half the kernel as padding: to the data or to the weight."""
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    gradients = torch.ops.aten.convolution_backward(
        grad,
        images,
        weight.contiguous(),
        None,
        [stride] * 2,
        padding,
        [1, 1],
        False,
        [0, 0],
        images.shape[1],
        [data, not data, False],
    )
    return gradients[0] if data else gradients[1]


def _wide_weight(images: torch.Tensor, gradients: torch.Tensor, out: torch.Tensor) -> None:
    """
    Add the weight gradient of one sample to ``out``, for stride 1 and kernels of more than three taps.

    Both volumes ``(D, C, H, W)`` are copied, a slab along D at a time, into rows of W voxels followed by zeros:
    ``(D, H, W', C)``, one zero voxel before the first. A shift of the flat copy of ``images`` then shifts every row,
    and what the shift brings in from the neighboring row is zero.
    """
    depth, channels, height, width = images.shape
    kernel_size = out.shape[2]
    padding = kernel_size // 2
    row = width + padding
    plane = height * row * channels
    planes = max(1, min(depth, 2 * SLAB_ELEMENTS // plane))
    margin = 2 * kernel_size * channels  # the largest shift to either side
    flat = empty([(planes + 2 * padding) * plane + 2 * margin], out.dtype).zero_()
    slab = flat[margin:-margin].view(-1, height, row, channels)
    grad_slab = empty([planes, height, row, channels], out.dtype).zero_()
    weight = out.new_empty(channels, 1, out.shape[3], NARROW)
    for start in range(0, depth, planes):
        stop = min(start + planes, depth)
        low, high = max(0, start - padding), min(depth, stop + padding)
        slab[low - start + padding : high - start + padding, :, 1 : width + 1] = images[low:high].permute(0, 2, 3, 1)
        grad_slab[: stop - start, :, 1 : width + 1] = gradients[start:stop].permute(0, 2, 3, 1)
        for tap in range(kernel_size):
            first, last = max(start, padding - tap), min(stop, depth + padding - tap)
            if last <= first:
                continue
            grad = grad_slab[first - start : last - start].permute(0, 3, 1, 2)
            for column in range(0, kernel_size, NARROW):
                shift = margin + (first - start + tap) * plane + (column + 1 - padding) * channels
                shifted = flat[shift : shift + (last - first) * plane].view(-1, height, row, channels)
                part = _backward_2d(grad, shifted.permute(0, 3, 1, 2), weight, 1, data=False)
                count = min(NARROW, kernel_size - column)
                out[:, :, tap, :, column : column + count] += part[..., :count]
