"""The section ``augmentation``: patches per second, against ``batchgeneratorsv2`` (nnU-Net v2's) with the same recipe.

Both read from memory-mapped cases, apply the recipe's nine augmentations with the same probabilities and ranges, and
pass batches of two through a ``DataLoader``, whose start is timed as well. Differences that remain: ours
interpolates images with cubic splines as published, or linearly, which is a contestant of its own;
``batchgeneratorsv2`` does so linearly, also to enlarge lower resolutions; ours returns uint8 labels, it int16. All are
random, so there is no agreement to show. A third of the patches is interpolated: use many.
"""

from __future__ import annotations

import math
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from mednext_monai.data.patches import PatchDataset
from mednext_monai.preprocessing.foreground import foreground_locations
from mednext_monai.transforms.augmentation import training_augmentation
from mednext_monai.transforms.patch import RandPatchd, read_box
from mednext_monai.transforms.spatial import RandRotateScaled

from .preprocessing import make_ball
from .timing import OURS, Measurement, compare, seconds

__all__ = ["measure_augmentation"]

PEER = "batchgeneratorsv2"
LINEAR = f"{OURS}, linear"


def measure_augmentation(options: Namespace) -> Iterator[Measurement]:
    """Load patches through both pipelines in turn, other patches in every round; the values are seconds per patch."""
    size, masked = options.patch_size, tuple(range(options.channels))
    with tempfile.TemporaryDirectory() as folder:
        cases = _make_cases(Path(folder), (options.channels, size * 3 // 2, size * 3 // 2, size * 5 // 4))
        transforms: dict[str, Callable] = {OURS: training_augmentation(size, mask_channels=masked)}
        transforms[LINEAR] = training_augmentation(size, mask_channels=masked, interpolation="linear")
        if find_spec(PEER):
            transforms[PEER] = _NnUNetV2Patch(size, options.channels)
        datasets = {name: PatchDataset(cases, transform) for name, transform in transforms.items()}
        steps = {name: partial(_load, data, options, count(0, options.patches)) for name, data in datasets.items()}
        compared = compare(steps, lambda step: seconds(step) / options.patches, options.repeats)
    if PEER not in steps:
        compared["skipped"][PEER] = "not installed"
    case = f"patch of {size}^3, {options.channels} channels, {options.workers} workers"
    yield Measurement("augmentation", case, "s", **compared, work=1, work_unit="patches/s")


def _load(dataset: PatchDataset, options: Namespace, starts: Iterator[int]) -> None:
    """Load the next ``options.patches`` patches in batches of two."""
    first = next(starts)
    for _ in DataLoader(
        dataset,
        batch_size=2,
        sampler=range(first, first + options.patches),
        num_workers=options.workers,
        collate_fn=_stack,
        worker_init_fn=_one_thread,
    ):
        pass


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _stack(items: list[dict]) -> dict[str, torch.Tensor]:
    # PyTorch's own collation writes into shared memory at once; plain tensors, because both pipelines can give these
    return default_collate([{key: item[key].as_subclass(torch.Tensor) for key in ("image", "label")} for item in items])


def _make_cases(folder: Path, shape: tuple[int, ...]) -> list[dict]:
    """Write four smooth random cases with three nested classes and an outside; return their paths."""
    random, cases = np.random.RandomState(0), []
    for number in range(4):
        radius, label = make_ball(shape[1:], phase=number)
        label[radius >= 1.1] = -1
        image = random.standard_normal(shape).astype(np.float32) * 0.2 + np.cos(9 * radius)
        files = {"image": f"{number}_image.npy", "label": f"{number}_label.npy", "foreground": f"{number}.npz"}
        case = {key: str(folder / file) for key, file in files.items()}
        np.save(case["image"], np.where(label < 0, 0, image).astype(np.float32))
        np.save(case["label"], label[None])
        np.savez(case["foreground"], **{str(value): voxels for value, voxels in foreground_locations(label).items()})
        cases.append(case)
    return cases


class _NnUNetV2Patch(RandPatchd):
    """Read the enlarged box from the memory-mapped arrays and transform it, as nnU-Net v2's loader does."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__(("image", "label"), patch_size, augmentation=RandRotateScaled("image"))
        self.transforms = _nnunet_v2_transforms(patch_size, channels)
        blur = next(t.transform for t in self.transforms.transforms[1:] if hasattr(t.transform, "benchmark"))
        for _ in range(12):  # it measures which of two methods is faster for a kernel size; not to be timed here
            blur(image=torch.zeros(channels, *self.patch_size))

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _NnUNetV2Patch:
        np.random.seed(seed)
        torch.manual_seed(seed)
        return super().set_random_state(seed, state)

    def __call__(self, case: dict) -> dict:
        image, label = (np.load(case[key], mmap_mode="r") for key in self.keys)
        with np.load(case["foreground"]) if case["force_foreground"] else nullcontext() as locations:
            self.randomize(image.shape[1:], locations)
        start = [s - (b - p) // 2 for s, b, p in zip(self.start, self.box_size, self.patch_size)]
        patch = self.transforms(
            image=read_box(image, start, self.box_size, self.fill["image"], "image"),
            segmentation=read_box(label, start, self.box_size, self.fill["label"], "label").to(torch.int16),
        )
        return {"image": patch["image"], "label": patch["segmentation"]}


def _nnunet_v2_transforms(patch_size: int, channels: int) -> Callable:
    """Return nnU-Net v2's default 3D training transforms without the deep-supervision targets."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    contrast, gamma = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
    sometimes = [
        (GaussianNoiseTransform((0, 0.1), 1, True), 0.1),
        (GaussianBlurTransform((0.5, 1.0), False, False, 0.5, benchmark=True), 0.2),
        (MultiplicativeBrightnessTransform(contrast, False, 1), 0.15),
        (ContrastTransform(contrast, True, False, 1), 0.15),
        (SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5), 0.25),
        (GammaTransform(gamma, 1, False, 1, 1), 0.1),
        (GammaTransform(gamma, 0, False, 1, 1), 0.3),
    ]
    rotation = {"p_rotation": 0.2, "rotation": (-math.pi / 6, math.pi / 6)}
    scaling = {"p_scaling": 0.2, "scaling": (0.7, 1.4), "p_synchronize_scaling_across_axes": 1}
    center = {"patch_center_dist_from_border": 0, "random_crop": False}
    transforms = [
        SpatialTransform((patch_size,) * 3, **center, **rotation, **scaling, bg_style_seg_sampling=False),
        *(RandomTransform(transform, apply_probability=p) for transform, p in sometimes),
        MirrorTransform((0, 1, 2)),
        MaskImageTransform(list(range(channels))),
        RemoveLabelTansform(-1, 0),
    ]
    return ComposeTransforms(transforms)
