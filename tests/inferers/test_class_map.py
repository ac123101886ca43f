"""Class maps in slabs: those of the whole image, with the memory of a few planes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.data.utils import collate_meta_tensor

from mednext_monai.data import ProbabilityStore
from mednext_monai.inferers import ClassMapInferer, MedNeXtInferer
from mednext_monai.preprocessing.geometry import Geometry, restore_axes, restore_image
from mednext_monai.transforms import Preprocessd, RestoreClassesd, SaveProbabilitiesd
from mednext_monai.transforms.preprocess import slab_axes


def network(classes: int):
    """A cheap network with a different map for each class."""
    torch.manual_seed(classes)
    weight = torch.randn(classes, 1, 3, 3, 3)
    return lambda windows: torch.nn.functional.conv3d(windows, weight, padding=1) * 3


def image(shape, spacing=(1.0, 1.0, 1.0), orientation=None, seed=0) -> MetaTensor:
    array = np.random.RandomState(seed).rand(1, *shape).astype(np.float32)
    array[:, :2] = 0  # cropped
    data = {"id": "case", "image": array, "image_meta_dict": {"affine": np.diag([*spacing, 1.0])}}
    return Preprocessd("image", orientation=orientation, label_key=None)(data)["image"]


CASES = [
    ((20, 30, 44), (1.0, 1.0, 1.0), None, 2),
    ((44, 20, 18), (0.7, 1.3, 1.0), None, 3),
    ((30, 52, 8), (0.8, 0.8, 5.0), None, 4),  # a separate axis, repeated slices
    ((60, 30, 40), (0.2, 0.9, 0.9), "PSR", 5),  # reoriented; a separate axis among the fine ones
    ((9, 9, 9), (1.0, 1.0, 1.0), None, 17),  # smaller than a window
]


@pytest.mark.parametrize(("shape", "spacing", "orientation", "classes"), CASES)
@pytest.mark.parametrize("overlap", [0.5, 0.7, 0.0])
def test_class_maps_are_those_of_the_whole_image(shape, spacing, orientation, classes, overlap):
    case, predict = image(shape, spacing, orientation), network(classes)
    inferer = MedNeXtInferer(16, overlap=overlap, mirror=classes < 4)
    result = ClassMapInferer(inferer)(collate_meta_tensor([case]), predict)
    assert result.shape == (1, 1, *shape)
    (item,) = decollate_batch(result)
    axis = inferer.slab_axis(case.shape[1:], slab_axes(case))
    whole = torch.cat(list(map(torch.clone, inferer.slabs(case[None], predict, along=axis))), dim=1 + axis)
    expected = RestoreClassesd("pred")({"image": case, "pred": whole})["pred"]
    assert (item != expected).float().mean() <= 1e-4  # of equal probabilities, rounding decides
    np.testing.assert_array_equal(item.affine, expected.affine)
    again = RestoreClassesd("pred")({"image": case, "pred": item})["pred"]
    assert again is item and item.dtype == expected.dtype


@pytest.mark.parametrize(("shape", "spacing", "orientation", "classes"), CASES)
def test_restoring_in_a_thread_changes_nothing(shape, spacing, orientation, classes):
    case, predict = collate_meta_tensor([image(shape, spacing, orientation)]), network(classes)
    inferer = MedNeXtInferer(16)
    here, in_thread = (ClassMapInferer(inferer, in_thread=threaded)(case, predict) for threaded in (False, True))
    np.testing.assert_array_equal(here.numpy(), in_thread.numpy())
    assert decollate_batch(in_thread)[0].meta["is_class_map"]


def test_errors_of_both_threads_arrive():
    case, inferer = collate_meta_tensor([image((20, 30, 44))]), MedNeXtInferer(16)
    with pytest.raises(ValueError, match="at least 2 classes"):
        ClassMapInferer(inferer, in_thread=True)(case, network(1))
    with pytest.raises(ZeroDivisionError):
        ClassMapInferer(inferer, in_thread=True)(case, lambda windows: 1 / 0)


@pytest.mark.parametrize("windows", ["published", "monai"])
@pytest.mark.parametrize(("shape", "spacing", "orientation", "classes"), CASES)
def test_probabilities_are_those_of_the_whole_image(shape, spacing, orientation, classes, windows, tmp_path):
    case, predict = image(shape, spacing, orientation), network(classes)
    inferer = MedNeXtInferer(16, mirror=classes < 4, windows=windows)
    store, batch = ProbabilityStore(tmp_path), collate_meta_tensor([case])
    result = ClassMapInferer(inferer, store)(batch, predict)
    assert torch.equal(result, ClassMapInferer(inferer)(batch, predict))  # bit for bit
    (item,) = decollate_batch(result)
    SaveProbabilitiesd("pred", store, tmp_path)({"image": case, "pred": item})
    with np.load(tmp_path / "case.npz") as file:
        found = file["probabilities"]
    assert (found.dtype, found.shape) == (np.float16, (classes, *shape))

    record = case.applied_operations[0]["extra_info"]
    expected = restore_image(inferer(case[None], predict)[0].numpy(), Geometry.from_dict(record["geometry"]))
    if orientation:
        expected = restore_axes(expected, np.asarray(record["affine"]), orientation)
    outside = expected.sum(0) == 0
    assert outside.any() and (found[0][outside] == 1).all() and not found[1:, outside].any()
    expected[0][outside] = 1
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-11, atol=1e-6)
    assert abs(found.astype(float).sum(0) - 1).max() <= 2**-11 + classes * 2**-25 + 1e-6
    largest = np.take_along_axis(found, item.numpy().astype(int), axis=0)[0]
    np.testing.assert_array_equal(largest, found.max(0))  # the class map is the argmax, up to ties of float16


@pytest.mark.parametrize("along", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "overlap", "batch"), [((50, 41, 37), 0.5, 1), ((16, 64, 33), 0.75, 4), ((7, 40, 9), 0.5, 2)]
)
def test_slabs_are_the_whole_result(size, overlap, batch, along):
    torch.manual_seed(0)
    x, predict = torch.rand(1, 1, *size), network(3)
    inferer = MedNeXtInferer(16, batch, overlap, mirror=along == 1)
    inferer.slab_axis = lambda shape, among=None: along  # that of the whole image, too
    slabs = [slab.clone() for slab in inferer.slabs(x, predict)]
    assert torch.equal(torch.cat(slabs, dim=1 + along), inferer(x, predict)[0])
    assert len(slabs) > 1 or size[along] <= 16


def test_background_and_slabs():
    x, predict = torch.zeros(1, 1, 80, 32, 32), network(3)
    x[..., 40:44, 10:20, 10:20] = 1
    calls = []
    inferer = MedNeXtInferer(16)
    slabs = [slab.clone() for slab in inferer.slabs(x, lambda w: calls.append(1) or predict(w))]
    assert torch.equal(torch.cat(slabs, dim=1), inferer(x, predict)[0])
    assert len(calls) < 9 * 9 * 9 // 3


def test_half_precision_is_within_its_bound():
    torch.manual_seed(0)
    x, predict = torch.rand(1, 1, 40, 40, 40), network(4)
    exact = MedNeXtInferer(16)(x, predict)
    half = MedNeXtInferer(16, accumulate="half")(x, predict)
    assert half.dtype == exact.dtype
    assert 0 < (half - exact).abs().max() <= 8 * 2**-12  # eight windows cover a voxel
    with pytest.raises(ValueError, match="accumulate must be one of"):
        MedNeXtInferer(16, accumulate="double")
    with pytest.raises(ValueError, match="accumulate"):
        MedNeXtInferer(16, accumulate="half", windows="monai")


def test_monais_windows_hold_everything_and_give_a_class_map():
    case, predict = image((20, 30, 44)), network(3)
    inferer = MedNeXtInferer(16, windows="monai")
    result = ClassMapInferer(inferer)(collate_meta_tensor([case]), predict)
    expected = RestoreClassesd("pred")({"image": case, "pred": inferer(case[None], predict)[0]})["pred"]
    assert torch.equal(result[0].as_tensor(), expected.as_tensor())


def test_several_images_have_no_slabs():
    with pytest.raises(ValueError, match="slabs need one image"):
        next(MedNeXtInferer(16).slabs(torch.rand(2, 1, 20, 20, 20), network(2)))


MEMORY = """
import sys
import numpy as np, torch
from monai.data import decollate_batch
from monai.data.utils import collate_meta_tensor
from mednext_monai.data import ProbabilityStore
from mednext_monai.inferers import ClassMapInferer, MedNeXtInferer
from mednext_monai.transforms import Preprocessd, SaveProbabilitiesd
torch.set_num_threads(1)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**10
length, classes = int(sys.argv[1]), 64
array = np.random.RandomState(0).rand(1, length, 64, 64).astype(np.float32)
case = Preprocessd("image", label_key=None)({"image": array, "image_meta_dict": {"affine": np.eye(4)}})["image"]
before = peak()
store = ProbabilityStore(sys.argv[2]) if len(sys.argv) > 2 else None
inferer = ClassMapInferer(MedNeXtInferer(32), store)
result = inferer(collate_meta_tensor([case]), lambda w: w.expand(-1, classes, -1, -1, -1))
if store is not None:
    SaveProbabilitiesd("pred", store, sys.argv[2])({"pred": decollate_batch(result)[0]})
print(peak() - before)
"""


def peak(*arguments) -> float:
    """Return by how many MiB the memory of a process grows that segments an image of this length."""
    command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_length_of_the_image():
    short, long = peak(128), peak(1024)
    whole = 64 * (1024 - 128) * 64 * 64 * 4 / 2**20  # MiB of probabilities by which the longer one exceeds the other
    assert long - short < whole / 4, (short, long, whole)  # image and class map take about a ninth


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_saving_probabilities_needs_no_more_memory(tmp_path):
    without, saving = peak(256), peak(256, tmp_path)
    (file,) = tmp_path.iterdir()
    with np.load(file) as archive:
        size = archive["probabilities"].nbytes / 2**20
    assert size == 128 and saving - without < size / 3, (without, saving)
