"""Depthwise convolutions and their gradients on the CPU equal PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from mednext_monai import memory
from mednext_monai.networks.backends.cpu import depthwise

CHANNELS_LAST = torch.channels_last_3d


def make_input(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs so small that the volumes of these tests have several."""
    monkeypatch.setattr(depthwise, "SLAB_ELEMENTS", 2 * 6 * 7 * 4)
    monkeypatch.setattr(memory, "SMALLEST", 256)


def convolve(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Join the slabs of the convolution of ``(D, H, W, C)``."""
    padding = [weight.shape[2] // 2] * 3
    return torch.cat([slab for _, slab in depthwise.depthwise_slabs(x, weight, None, padding, stride)])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("channels, dtype, tolerance", [(3, torch.float64, 1e-12), (16, torch.float32, 1e-5)])
def test_outputs_and_gradients_equal_pytorchs(kernel_size, stride, channels, dtype, tolerance, small_slabs):
    for size in ((5, 6, 7), (1, 2, 3), (8, 1, 4), (9, 8, 2)):
        x = make_input(2, *size, channels, dtype=dtype)
        weight = make_input(channels, 1, *[kernel_size] * 3, dtype=dtype)
        # The truth in float64 and channels-first: torch 2.13's float32 channels-last gradient of k7 stride 2 is wrong.
        exact = [x.double().movedim(-1, 1).contiguous().requires_grad_(), weight.double().requires_grad_()]
        y = torch.conv3d(*exact, None, stride, kernel_size // 2, groups=channels)
        grad = make_input(*y.movedim(1, -1).shape, dtype=dtype)
        grad_x, grad_weight = torch.autograd.grad(y, exact, grad.double().movedim(-1, 1))
        expected = {"y": y.detach().movedim(1, -1), "x": grad_x.movedim(1, -1), "weight": grad_weight}
        found = {"y": torch.stack([convolve(sample, weight, stride) for sample in x])}
        if stride == 1:
            found["x"] = torch.stack([convolve(sample, weight.flip(2, 3, 4), 1) for sample in grad])
        else:
            found["x"] = torch.empty_like(x)
            for i, sample in enumerate(grad):
                depthwise.backward_data(sample, weight, found["x"][i])
        found["weight"] = torch.zeros_like(weight)
        for sample, grad_sample in zip(x, grad):
            depthwise.backward_weight(sample, grad_sample, stride, found["weight"])
        for name, value in expected.items():
            error = (found[name].double() - value).abs().max()
            assert error <= tolerance * value.abs().max(), (name, size, error)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_backward_pass_of_bfloat16_volumes_is_computed_in_float32(kernel_size, stride, small_slabs):
    for size in ((5, 6, 7), (1, 1, 1), (2, 2, 2), (4, 4, 4), (9, 8, 2)):
        x = make_input(*size, 16, dtype=torch.bfloat16)
        weight = make_input(16, 1, *[kernel_size] * 3, dtype=torch.float32)
        grad = make_input(*[(n - 1) // stride + 1 for n in size], 16, dtype=torch.bfloat16)
        found, expected = (torch.zeros_like(weight) for _ in range(2))
        depthwise.backward_weight(x, grad, stride, found)
        depthwise.backward_weight(x.float(), grad.float(), stride, expected)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if stride == 2:
            found, expected = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
            depthwise.backward_data(grad, weight, found)
            depthwise.backward_data(grad.float(), weight, expected)
            assert torch.equal(found, expected.bfloat16())


def test_transposed_phases_are_the_transposed_convolution():
    x = torch.randn(1, 6, 4, 5, 3)
    for kernel in (3, 5, 7):
        weight = torch.randn(6, 1, kernel, kernel, kernel)
        expected = nn.functional.conv_transpose3d(x, weight, stride=2, padding=kernel // 2, groups=6)
        for phase in depthwise.transposed_phases(weight):
            part = expected[(slice(None), slice(None), *(slice(p, None, 2) for p in phase.parity))]
            result = nn.functional.conv3d(x, phase.weight, padding=phase.padding, groups=6)
            torch.testing.assert_close(result, part, rtol=1e-5, atol=1e-5)
