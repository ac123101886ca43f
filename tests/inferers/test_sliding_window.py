"""Sliding-window inference: published windows and weights, averaged probabilities, mirror images, small volumes."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter

from mednext_monai.inferers import MedNeXtInferer, sliding_window


def network(x: torch.Tensor) -> torch.Tensor:
    """Two classes whose logits depend on the place within the window, so that windows and mirrors disagree."""
    ramp = torch.linspace(-2, 3, x.shape[-1])
    return torch.cat([x * ramp, x.square()], dim=1)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def published(x: torch.Tensor, window: int, starts: list[list[int]]) -> torch.Tensor:
    """The published inference of one image at the given windows, its Gaussian from SciPy as the original's."""
    delta = np.zeros([window] * 3)
    delta[(window // 2,) * 3] = 1
    weights = gaussian_filter(delta, window / 8, mode="constant", cval=0)
    weights = torch.from_numpy(weights / weights.max()).float()
    weights[weights == 0] = weights[weights > 0].min()
    total, norm = torch.zeros(1, 2, *x.shape[2:]), torch.zeros(x.shape[2:])
    for corner in product(*starts):
        place = tuple(slice(i, i + window) for i in corner)
        total[(slice(None), slice(None), *place)] += network(x[(slice(None), slice(None), *place)]).softmax(1) * weights
        norm[place] += weights
    return total / norm


def test_windows_and_weights_are_the_published_ones():
    x = random_images(1, 1, 20, 16, 40)
    expected = published(x, 16, [[0, 4], [0], [0, 8, 16, 24]])
    torch.testing.assert_close(MedNeXtInferer(16)(x, network), expected)
    x = random_images(1, 1, 33, 25, 43)  # evenly: 17 in three steps is 0, 6, 11, 17; ties go to the even number
    expected = published(x, 16, [[0, 6, 11, 17], [0, 4, 9], [0, 7, 14, 20, 27]])
    torch.testing.assert_close(MedNeXtInferer(16)(x, network), expected)


def test_the_smallest_weight_of_the_published_window():
    weights = MedNeXtInferer(128)._weights((128, 128, 128))
    assert weights.max() == weights[64, 64, 64] == 1
    assert weights.min().item() == pytest.approx(3.8e-11, rel=0.02)
    assert MedNeXtInferer(16, sigma_scale=0.05)._weights((16, 16)).min() > 0  # cut off after 4 sigma, then filled


@pytest.mark.parametrize("windows", ["published", "monai"])
@pytest.mark.parametrize("overlap, count", [(0.0, 2), (0.2, 3), (0.5, 4), (0.9, 16)])
def test_as_many_windows_as_monai(windows, overlap, count):
    seen = []
    MedNeXtInferer(10, overlap=overlap, windows=windows)(
        random_images(1, 1, 10, 10, 25 if overlap else 20), lambda x: seen.append(x) or network(x)
    )
    assert len(seen) == count


def test_batches_of_windows_and_of_images_change_nothing():
    x = random_images(2, 1, 20, 24, 28)
    expected = torch.cat([MedNeXtInferer(16)(image[None], network) for image in x])
    sizes = []
    result = MedNeXtInferer(16, sw_batch_size=5)(x, lambda w: sizes.append(len(w)) or network(w))
    torch.testing.assert_close(result, expected)
    assert sizes == [5, 3] * 3  # three rows of 2 x 2 windows of each image; a batch ends with its row


def test_the_windows_of_a_row_are_looked_at_once_before_the_network_runs(monkeypatch):
    """On a GPU each look waits for all that was started: between the windows it would keep the GPU waiting."""
    log = []
    plain = sliding_window._keys
    monkeypatch.setattr(sliding_window, "_keys", lambda windows: log.append(len(windows)) or plain(windows))
    MedNeXtInferer(16)(random_images(1, 1, 20, 24, 28), lambda x: log.append("network") or network(x))
    assert log == [4, *["network"] * 4] * 3


def test_windows_are_known_by_their_number_or_by_the_constants_that_they_hold():
    windows = torch.stack([torch.zeros(2, 3, 3, 3), random_images(2, 3, 3, 3), torch.zeros(2, 3, 3, 3)])
    windows[2, 1] = 5
    nan = torch.full((2, 3, 3, 3), torch.nan)
    assert sliding_window._keys([*windows, nan]) == [(0.0, 0.0), 1, (0.0, 5.0), 3]


@pytest.mark.parametrize("windows", ["published", "monai"])
def test_a_meta_tensor_keeps_its_affine_and_type(windows):
    affine = torch.diag(torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    x = MetaTensor(random_images(1, 1, 20, 9, 16), affine=affine)
    result = MedNeXtInferer(16, windows=windows)(x, network)
    assert isinstance(result, MetaTensor) and result.shape == (1, 2, 20, 9, 16)
    assert torch.equal(result.affine, affine)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("mirror", [False, True])
def test_background_is_predicted_once(mirror):
    x = torch.full((2, 2, 20, 16, 80), -1.0)
    x[:, 1] = 0.5
    x[1, 0, 4, 4, 70] = 2.0  # in the last two windows along the last axis, in both along the first
    x[0, 1, :, :, :16] = 0.25  # constant, but another constant
    seen = []

    def logits(windows: torch.Tensor) -> torch.Tensor:
        seen.extend(windows)
        return network(windows[:, :1] + windows[:, 1:])

    arguments = dict(sw_batch_size=3, mirror=mirror, mode="constant")
    result = MedNeXtInferer(16, **arguments)(x, logits)
    images = 8 if mirror else 1
    assert len(seen) == images * (2 + 2 + 4)  # two constants, two windows on their border, four with the other voxel
    expected = MedNeXtInferer((16, 16, 16), windows="monai", **arguments)(x, logits)  # in the same places, every one
    assert len(seen) == images * (8 + 2 * 18)
    torch.testing.assert_close(result, expected)


def test_two_axes():
    result = MedNeXtInferer(16, mirror=True)(random_images(1, 1, 20, 9), network)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 20, 9))


def test_the_border_is_padded_as_told():
    x = random_images(1, 1, 11, 16, 16)
    result = MedNeXtInferer(16, cval=3.0)(x, network)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 3), value=3.0)
    torch.testing.assert_close(result, network(padded).softmax(1)[:, :, 2:13])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(windows="even"), "windows must be one of"),
        (dict(overlap=1.0), "overlap must be at least 0 and below 1, got 1.0"),
        (dict(buffer_steps=2), "buffer_steps: only supported with windows='monai'"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MedNeXtInferer(16, **arguments)


def test_a_window_of_another_dimension_or_logits_of_another_size_are_named():
    with pytest.raises(ValueError, match="roi_size must have one number for each of the 3 spatial axes"):
        MedNeXtInferer((16, 16))(random_images(1, 1, 16, 16, 16), network)
    with pytest.raises(ValueError, match=r"The network made \(8, 16, 16\) voxels of a window of \(16, 16, 16\)"):
        MedNeXtInferer(16)(random_images(1, 1, 16, 16, 16), lambda x: network(x)[:, :, ::2])


def test_the_windows_of_monai_are_at_hand():
    x = random_images(1, 1, 20, 24, 28)
    result = MedNeXtInferer((16, 16, 16), windows="monai")(x, network)
    expected = sliding_window_inference(
        x, (16, 16, 16), 1, lambda w: network(w).softmax(1), overlap=0.5, mode="gaussian", sigma_scale=0.125
    )
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 20, 24, 28))


def test_mirror_averages_all_eight_mirror_images():
    x = random_images(1, 1, 16, 16, 16)
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


def slice_network(x: torch.Tensor) -> torch.Tensor:
    assert x.dim() == 4
    return network(x)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("mirror", [False, True])
def test_volumes_are_predicted_slice_by_slice(axis, batch, mirror):
    shape = [20, 24, 40]
    x = random_images(1, 1, *shape)
    inferer = MedNeXtInferer((16, 16), batch, mirror=mirror, slice_axis=axis)
    in_2d = MedNeXtInferer((16, 16), mirror=mirror)
    slices = [in_2d(x.select(2 + axis, index), slice_network) for index in range(shape[axis])]
    expected = torch.stack(slices, 2 + axis)
    torch.testing.assert_close(inferer(x, slice_network), expected)
    for along in range(3):
        found = torch.cat([slab.clone() for slab in inferer.slabs(x, slice_network, along=along)], 1 + along)
        torch.testing.assert_close(found[None], expected)


def test_a_batch_holds_windows_of_several_slices_and_four_mirror_images_are_averaged():
    x, sizes = random_images(1, 2, 16, 16, 10), []

    def counting(window: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(window.shape))
        return network(window[:, :1])

    inferer = MedNeXtInferer((16, 16), 4, mirror=True, slice_axis=2)
    list(inferer.slabs(x, counting))
    assert sizes == [(4, 2, 16, 16)] * 8 + [(2, 2, 16, 16)] * 4


def test_a_slice_axis_needs_a_window_of_two_numbers():
    with pytest.raises(ValueError, match="for each of the 3 spatial axes but the slice axis, 0, of inputs"):
        MedNeXtInferer((16, 16, 16), slice_axis=0)(random_images(1, 1, 20, 20, 20), network)
    with pytest.raises(ValueError, match="slice_axis: only supported with windows='published'"):
        MedNeXtInferer((16, 16), windows="monai", slice_axis=0)
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        MedNeXtInferer((16, 16), slice_axis=3)


@pytest.mark.parametrize("wanted, pays", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("windows", ["published", "monai"])
def test_only_the_network_runs_in_bfloat16_and_only_if_wanted_and_faster(wanted, pays, windows):
    seen = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        return network(x).bfloat16()

    with patch("mednext_monai.inferers.autocast.bfloat16_pays", return_value=pays):
        result = MedNeXtInferer(16, mirror=True, windows=windows, cpu_amp=wanted)(
            random_images(1, 1, 16, 16, 20), watched
        )
    assert result.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(result.sum(1), torch.ones(1, 16, 16, 20), rtol=0, atol=1e-5)  # the softmax is float32
    assert seen == [wanted and pays] * 16


def test_cpu_amp_is_a_switch():
    assert MedNeXtInferer(16, cpu_amp="true").cpu_amp is True
    with pytest.raises(ValueError, match="cpu_amp must be true or false"):
        MedNeXtInferer(16, cpu_amp="bf16")
