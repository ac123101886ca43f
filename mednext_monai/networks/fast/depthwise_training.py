"""The two gradients of a depthwise 3D convolution on the CPU, by computations that have fast kernels.

PyTorch gives the backward pass of a grouped 3D convolution to kernels that treat the groups as dense blocks. Three
identities lead to the depthwise kernels of oneDNN instead, all on channels-last storage ``(B, D, H, W, C)``:

- Backward-data with stride 1 is the forward convolution with the kernel flipped along every axis.
- A 3D kernel is a sum over its first axis of 2D kernels, and the slices ``(D, H, W, C)`` of a volume are a batch of 2D
  images without a copy. Backward-weight, and backward-data with stride 2, are therefore sums of the 2D operations.
- The 2D backward-weight kernel takes rows of at most three taps. Wider kernels are taken three columns at a time, on
  copies whose rows are separated by zeros, so that shifting the flat memory shifts every row.

What is done with a slab of the output right after it was made finds it in the cache.

The transposed convolution with stride 2 is the adjoint of the one with stride 2: ``backward_data`` is its forward pass,
``torch.conv3d`` its backward-data, and ``backward_weight`` with the roles of input and gradient exchanged its
backward-weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .memory import empty

__all__ = ["backward_data", "backward_weight", "convolve_slabs"]

SLAB_ELEMENTS = 1 << 19  # of a slab along D; it stays in the second-level caches
NARROW = 3  # taps in a row that the 2D backward-weight kernel takes


def convolve_slabs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """
    Depthwise convolution with stride 1, a slab along the first axis at a time.

    Args:
        x: one sample, ``(1, C, D, H, W)``, channels-last.
        weight: ``(C, 1, k, k, k)``, odd ``k``; the padding is ``k // 2``.
        bias: ``(C,)`` or ``None``.

    Yields:
        The planes of a slab and the output there, ``(1, C, planes, H, W)``, channels-last.
    """
    depth, padding = x.shape[2], weight.shape[2] // 2
    planes = max(1, SLAB_ELEMENTS // x[0, :, 0].numel())
    for start in range(0, depth, planes):
        stop = min(start + planes, depth)
        low, high = start - padding, stop + padding
        inside = low >= 0 and high <= depth
        source = x[:, :, max(low, 0) : high]
        slab = torch.conv3d(source, weight, bias, 1, [0 if inside else padding, padding, padding], groups=x.shape[1])
        if not inside:
            first = start - max(low, 0)
            slab = slab[:, :, first : first + stop - start]
        yield slice(start, stop), slab.contiguous(memory_format=torch.channels_last_3d)


def backward_data(grad: torch.Tensor, weight: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """
    Gradient of a depthwise convolution with stride 2 with respect to its input.

    Equally the forward pass of the transposed convolution with stride 2, whose input is ``grad``. (With stride 1 the
    gradient is ``convolve_slabs`` with ``weight.flip(2, 3, 4)``.)

    Args:
        grad: gradient of the output, ``(B, C, D', H', W')``, channels-last.
        weight: ``(C, 1, k, k, k)``, odd ``k``, the convolution's padding being ``k // 2``.
        size: spatial size ``(D, H, W)`` of the input.

    Returns:
        ``(B, C, D, H, W)``, channels-last.
    """
    channels, padding = weight.shape[0], weight.shape[2] // 2
    depth, height, width = size
    out = empty((grad.shape[0], depth, height, width, channels), grad.dtype).zero_()
    for i in range(grad.shape[0]):
        volume, images = out[i].permute(0, 3, 1, 2), grad[i].transpose(0, 1)
        for tap in range(weight.shape[2]):
            rows, columns = _slices(tap - padding, depth, images.shape[0], stride=2)
            target, source = volume[rows], images[columns]
            if source.shape[0]:
                target += _backward_2d(source, _like_images(target), weight[:, :, tap], 2, data=True)
    return out.permute(0, 4, 1, 2, 3)


def backward_weight(x: torch.Tensor, grad: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """
    Gradient of a depthwise convolution with respect to its weight.

    Args:
        x: the input, ``(B, C, D, H, W)``, channels-last.
        grad: gradient of the output, ``(B, C, D', H', W')``, channels-last.
        kernel_size: odd; the convolution's padding is half of it.
        stride: 1 or 2, on every axis.

    Returns:
        ``(C, 1, k, k, k)``.
    """
    out = x.new_zeros(x.shape[1], 1, kernel_size, kernel_size, kernel_size)
    for i in range(x.shape[0]):
        images, gradients = x[i].transpose(0, 1), grad[i].transpose(0, 1)
        if kernel_size > NARROW and stride == 1:
            _wide_weight(images, gradients, out)
            continue
        for tap in range(kernel_size):
            rows, columns = _slices(tap - kernel_size // 2, images.shape[0], gradients.shape[0], stride)
            if gradients[columns].shape[0]:
                out[:, :, tap] += _backward_2d(gradients[columns], images[rows], out[:, :, tap], stride, data=False)
    return out


def _slices(offset: int, size: int, grad_size: int, stride: int) -> tuple[slice, slice]:
    """Return which indices of the input one tap meets, and which of the output: input = stride * output + offset."""
    first = max(0, -(offset // stride))  # the smallest output index whose input index is not negative
    last = max(first, min(grad_size, (size - 1 - offset) // stride + 1))
    return slice(stride * first + offset, stride * last + offset, stride), slice(first, last)


def _like_images(images: torch.Tensor) -> torch.Tensor:
    """Return an uninitialised channels-last tensor of the shape of ``images``, for functions that need the shape."""
    return torch.empty_like(images, memory_format=torch.channels_last)


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
    and what the shift brings in from the neighbouring row is zero.
    """
    depth, channels, height, width = images.shape
    kernel_size = out.shape[2]
    padding = kernel_size // 2
    row = width + padding
    plane = height * row * channels
    planes = max(1, min(depth, 2 * SLAB_ELEMENTS // plane))
    margin = 2 * kernel_size * channels  # the largest shift to either side
    flat = empty([(planes + 2 * padding) * plane + 2 * margin], images.dtype).zero_()
    slab = flat[margin:-margin].view(-1, height, row, channels)
    grad_slab = empty([planes, height, row, channels], images.dtype).zero_()
    weight = out.new_empty(channels, 1, kernel_size, NARROW)
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
