"""Statistics of the norm and products of rows on the CPU."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from mednext_monai.networks.backends.cpu import pointwise


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_precise_statistics_of_parts_are_those_of_the_whole(dtype, tolerance):
    rows = (torch.randn(1000, 4) * torch.tensor([1.0, 1e-3, 10, 1]) + torch.tensor([0.0, 1, 1e3, -5])).to(dtype)
    statistics = pointwise.PreciseChannelStatistics(4, dtype)
    with patch.object(pointwise, "CHUNK_ELEMENTS", 500):
        for part in rows.split(300):
            statistics.add(part)
    mean, scale = statistics.mean_and_scale(1e-12)
    torch.testing.assert_close(mean.double(), rows.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scale.double().pow(-2), rows.double().var(0, correction=0), rtol=tolerance, atol=1e-11)


def test_statistics_of_parts_are_those_of_the_whole():
    rows = torch.randn(1000, 4) * torch.tensor([1.0, 1e-3, 10, 1]) + torch.tensor([0.0, 1, 1e3, -5])
    statistics = pointwise.ChannelStatistics()
    for part in rows.split(300):
        statistics.add(part)
    mean, scale = statistics.mean_and_scale(1e-12)
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scale.pow(-2), rows.double().var(0, correction=0), rtol=1e-4, atol=0)


def test_statistics_of_bfloat16_rows_are_float32():
    rows = (torch.randn(5000, 4) * torch.tensor([1.0, 1e-3, 10, 1]) + torch.tensor([0.0, 0.01, 3, -5])).bfloat16()
    statistics = pointwise.ChannelStatistics()
    for part in rows.split(1500):
        statistics.add(part)
    mean, scale = statistics.mean_and_scale(0.0)
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scale.pow(-2), rows.double().var(0, correction=0), rtol=1e-4, atol=0)
    means = pointwise.channel_means(rows)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means.double(), rows.double().mean(0), rtol=1e-5, atol=1e-6)
