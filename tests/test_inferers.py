"""Sliding-window inference: averaged probabilities, mirror images, volumes smaller than the window."""

from __future__ import annotations

from itertools import product

import torch
from monai.inferers import sliding_window_inference

from mednext_monai.inferers import MedNeXtInferer


def network(x: torch.Tensor) -> torch.Tensor:
    """Two classes whose logits depend on the place within the window, so that windows and mirrors disagree."""
    ramp = torch.linspace(-2, 3, x.shape[-1])
    return torch.cat([x * ramp, x.square()], dim=1)


def test_probabilities_not_logits_are_averaged_over_windows():
    x = torch.randn(1, 1, 20, 24, 28, generator=torch.Generator().manual_seed(0))
    result = MedNeXtInferer((16, 16, 16))(x, network)
    expected = sliding_window_inference(
        x, (16, 16, 16), 1, lambda w: network(w).softmax(1), overlap=0.5, mode="gaussian", sigma_scale=0.125
    )
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 20, 24, 28))


def test_mirror_averages_all_eight_mirror_images():
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(1, 2, 16, 16, 16)
    for axes in product((False, True), repeat=3):
        flip = [axis + 2 for axis, mirrored in enumerate(axes) if mirrored]
        expected += network(x.flip(flip)).softmax(1).flip(flip) / 8
    result = MedNeXtInferer((16, 16, 16), mirror=True)(x, network)
    torch.testing.assert_close(result, expected)
    for axis in (2, 3, 4):  # and is therefore the same for a mirrored image
        mirrored = MedNeXtInferer((16, 16, 16), mirror=True)(x.flip([axis]), network)
        torch.testing.assert_close(mirrored.flip([axis]), result)


def test_a_volume_smaller_than_the_window():
    assert MedNeXtInferer((16, 16, 16))(torch.randn(1, 1, 9, 16, 5), network).shape == (1, 2, 9, 16, 5)
