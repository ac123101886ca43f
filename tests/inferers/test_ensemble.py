"""The mean over groups of networks that see different images, with the memory of one network."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import decollate_batch
from monai.data.utils import collate_meta_tensor

from mednext_monai.data import ProbabilityStore
from mednext_monai.inferers import ClassMapInferer, EnsembleInferer, MedNeXtInferer, class_map_inferer
from mednext_monai.networks import Ensemble
from mednext_monai.transforms import Preprocessd, PreprocessOthersd, SaveProbabilitiesd
from mednext_monai.weights import Group

OTHERS = {"image_1": {"spacing": (2.0, 1.5, 1.0), "orientation": "PSR"}, "image_2": {"normalization": ["none"]}}


class Convolution(torch.nn.Module):
    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(classes, 1, 3, 3, 3) * 3, requires_grad=False)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(windows, self.weight, padding=1)


def images_of(shape: tuple[int, ...], cases: int = 1, others=None) -> list[torch.Tensor]:
    """Return the batches of the images that the groups see."""
    batches = []
    for case in range(cases):
        array = np.random.RandomState(case).rand(1, *shape).astype(np.float32)
        array[:, :2] = 0  # cropped
        data = {"id": f"case_{case}", "image": array, "image_meta_dict": {"affine": np.diag([0.8, 1.2, 3.0, 1])}}
        data = Preprocessd("image", label_key=None)(PreprocessOthersd("image", others or OTHERS)(data))
        batches.append([data["image"], *(data[key] for key in others or OTHERS)])
    return [collate_meta_tensor(list(images)) for images in zip(*batches)]


GROUPS = [
    Group("image", {}, [16, 16, 16], [0, 2]),
    Group("image_1", {}, [16, 16, 24], [1]),
    Group("image_2", {}, [24, 16, 16], [3]),
]


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("accumulate", ["float32", "half"])
def test_the_mean_is_that_of_the_members_on_the_grid_of_the_image(tmp_path, in_thread, accumulate):
    shape, members = (20, 18, 16), [Convolution(3, seed) for seed in range(4)]
    batch = images_of(shape, cases=2)
    network = Ensemble(members, [group.members for group in GROUPS])
    store = ProbabilityStore(tmp_path)
    inferer = MedNeXtInferer(16, accumulate=accumulate)
    result = EnsembleInferer(inferer, GROUPS, store, in_thread)(batch[0], network, *batch[1:])
    assert result.shape == (2, 1, *shape)

    def save(item):
        SaveProbabilitiesd("pred", store, tmp_path)({"pred": item})
        with np.load(tmp_path / f"{item.meta['case_id']}.npz") as file:
            return file["probabilities"].astype(np.float64)

    found = [save(item) for item in decollate_batch(result)]
    expected = [np.zeros((3, *shape)) for _ in found]
    for group, images in zip(GROUPS, batch):
        for member in group.members:
            single = ClassMapInferer(MedNeXtInferer(group.patch_size, accumulate=accumulate), store)
            for total, item in zip(expected, decollate_batch(single(images, members[member]))):
                total += save(item) / 4
    for one, mean, item in zip(found, expected, decollate_batch(result)):
        np.testing.assert_allclose(one, mean, rtol=2**-10, atol=1e-3 if accumulate == "half" else 1e-5)
        largest = np.take_along_axis(one, item.numpy().astype(int), 0)[0]
        np.testing.assert_array_equal(largest, one.max(0))
    assert sorted(os.listdir(tmp_path)) == ["case_0.npz", "case_1.npz"]


def test_one_group_needs_no_sums_and_each_group_an_image(tmp_path):
    inferer, store = MedNeXtInferer(16), ProbabilityStore(tmp_path, is_kept=False)
    assert isinstance(class_map_inferer(inferer, GROUPS[:1], store), ClassMapInferer)
    several = class_map_inferer(inferer, GROUPS, store)
    assert [one.roi_size for one in several.inferers] == [16, [16, 16, 24], [24, 16, 16]]
    with pytest.raises(ValueError, match="there must be 3 images, one for each group, got 1"):
        several(images_of((16, 16, 16))[0], Convolution(2, 0))


def test_arrays_do_not_grow_with_the_number_of_groups(tmp_path):
    def peak(count: int) -> float:
        batch = images_of((64, 48, 20), others={f"image_{i}": {} for i in range(1, count)})
        groups = [Group("", {}, [32, 32, 32], [i]) for i in range(count)]
        network = Ensemble([Convolution(48, i) for i in range(count)], [[i] for i in range(count)])
        inferer = EnsembleInferer(MedNeXtInferer(32), groups, ProbabilityStore(tmp_path, is_kept=False))
        tracemalloc.start()
        try:
            inferer(batch[0], network, *batch[1:])
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    two, three = peak(2), peak(3)
    assert two > 1 and abs(three - two) < 0.1 * two, (two, three)


MEMORY = """
import sys
import numpy as np, torch
from monai.data.utils import collate_meta_tensor
from mednext_monai.data import ProbabilityStore
from mednext_monai.inferers import MedNeXtInferer, class_map_inferer
from mednext_monai.networks import Ensemble
from mednext_monai.transforms import Preprocessd
from mednext_monai.weights import Group
torch.set_num_threads(1)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**10
class Expand(torch.nn.Module):
    def forward(self, windows):
        return windows.expand(-1, 64, -1, -1, -1)
folder, count, is_one_group = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "one group"
array = np.random.RandomState(0).rand(1, 256, 64, 64).astype(np.float32)
case = Preprocessd("image", label_key=None)({"image": array, "image_meta_dict": {"affine": np.eye(4)}})["image"]
numbers = [list(range(count))] if is_one_group else [[i] for i in range(count)]
images = [collate_meta_tensor([case]) for _ in numbers]
before = peak()
groups = [Group("", {}, [32] * 3, members) for members in numbers]
inferer = class_map_inferer(MedNeXtInferer(32), groups, ProbabilityStore(folder, is_kept=False))
inferer(images[0], Ensemble([Expand() for _ in range(count)], numbers), *images[1:])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("groups", ["one group", "several groups"])
def test_memory_does_not_grow_with_the_number_of_networks(tmp_path, groups):
    def peak(count: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(count), groups]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    two, three = peak(2), peak(3)
    whole = 64 * 256 * 64 * 64 * 4 / 2**20  # MiB of the probabilities of one network
    print(two, three, whole)
    assert abs(three - two) < whole / 4 and three < 1.2 * whole, (two, three, whole)
    assert os.listdir(tmp_path) == []
