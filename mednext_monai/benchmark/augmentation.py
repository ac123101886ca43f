"""The section ``augmentation``: patches per second, against ``batchgeneratorsv2`` (nnU-Net v2's) with the same recipe.

Both read from memory-mapped two-channel cases, apply the recipe's nine augmentations with the same probabilities and
ranges, and pass batches of two through a ``DataLoader``, whose start is timed as well. Differences that remain: ours
interpolates images with cubic splines as published, ``batchgeneratorsv2`` linearly, which also enlarges lower
resolutions linearly; ours returns uint8 labels, it int16. Both are random, so there is no agreement to show.

Where ours spends its time (single process, two channels, per patch on average): rotation, which applies to a fifth of
the patches, takes more than half, most of it in the 64-neighbor sums and the prefilter; then scaling, gamma, noise
(MONAI's, in float64), and copying the patch between processes.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mednext_monai.data.patches import PatchDataset, is_forced_slot
from mednext_monai.preprocessing.foreground import foreground_locations
from mednext_monai.transforms.augmentation import training_augmentation
from mednext_monai.transforms.patch import read_box
from mednext_monai.transforms.spatial import RandRotateScaled

from .preprocessing import make_ball
from .timing import OURS, Measurement, compare

__all__ = ["make_cases", "measure_augmentation"]

PEER = "batchgeneratorsv2"
MASK_CHANNELS = (0, 1)


def measure_augmentation(options: Namespace) -> Iterator[Measurement]:
    """
    Load patches through both pipelines in turn, from the same stored volumes, other patches in every round.

    The values are seconds per patch. A third of the patches is interpolated, so use many.
    """
    size, missing = options.patch_size, {}
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), shape=(size * 3 // 2, size * 3 // 2, size * 5 // 4))
        datasets = {OURS: PatchDataset(cases, training_augmentation(size, mask_channels=MASK_CHANNELS))}
        try:
            datasets[PEER] = _NnUNetV2Patches(cases, size)
        except ImportError:
            missing[PEER] = "not installed"
        cpu: dict[str, list[float]] = {name: [] for name in datasets}

        def load(name: str) -> float:
            first = len(cpu[name]) * options.patches
            seconds, seconds_of_workers = _load(datasets[name], first, options.patches, options.workers)
            cpu[name].append(seconds_of_workers / options.patches)
            return seconds / options.patches

        compared = compare({name: partial(load, name) for name in datasets}, lambda step: step(), options.repeats)
    compared["skipped"] |= missing
    busy = ", ".join(f"{name} {1000 * np.mean(cpu[name]):.0f} ms" for name in compared["values"])
    yield Measurement(
        "augmentation",
        f"patch of {size}^3, 2 channels, {options.workers} workers",
        "s",
        **compared,
        notes=[f"CPU time of the workers per patch: {busy}."] if options.workers else [],
        work=1,
        work_unit="patches/s",
    )


def _load(dataset: Dataset, first: int, count: int, workers: int) -> tuple[float, float]:
    """Return the elapsed seconds, and the workers' CPU seconds, for ``count`` patches from position ``first``."""
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=range(first, first + count),
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_one_thread,
    )
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - started
    del loader
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _stack(items: list[dict]) -> dict[str, torch.Tensor]:
    # PyTorch's own collation writes into shared memory at once; plain tensors, because both pipelines can give these
    return default_collate([{key: item[key].as_subclass(torch.Tensor) for key in ("image", "label")} for item in items])


def make_cases(folder: Path, shape: tuple[int, int, int], cases: int = 4, channels: int = 2) -> list[dict]:
    """Write smooth random volumes with three nested classes and an outside; return a dictionary of paths per case."""
    random = np.random.RandomState(0)
    data = []
    for case in range(cases):
        radius, label = make_ball(shape, phase=case)
        label[radius >= 1.1] = -1
        image = random.standard_normal((channels, *shape)).astype(np.float32) * 0.2 + np.cos(9 * radius)
        paths = {name: str(folder / f"case{case}_{name}") for name in ("image.npy", "label.npy", "foreground.npz")}
        np.save(paths["image.npy"], np.where(label < 0, 0, image).astype(np.float32))
        np.save(paths["label.npy"], label[None])
        np.savez(paths["foreground.npz"], **{str(k): v for k, v in foreground_locations(label).items()})
        data.append({"id": f"case{case}"} | {name.split(".")[0]: path for name, path in paths.items()})
    return data


class _NnUNetV2Patches(Dataset):
    """Cut the enlarged box from the memory-mapped arrays and transform it, as nnU-Net v2's loader does."""

    def __init__(self, data: list[dict], patch_size: int) -> None:
        self.data, self.patch_size = data, patch_size
        self.transforms = _nnunet_v2_transforms(patch_size)
        self.box = RandRotateScaled("image").box_size((patch_size,) * 3)
        blur = next(t.transform for t in self.transforms.transforms[1:] if hasattr(t.transform, "benchmark"))
        for _ in range(12):  # it measures which of two methods is faster for a kernel size; not to be timed here
            blur(image=torch.zeros(2, *(patch_size,) * 3))

    def __getitem__(self, index: int) -> dict:
        random = np.random.RandomState([1, index])
        np.random.seed(random.randint(2**31))
        torch.manual_seed(int(random.randint(2**31)))
        case = self.data[random.randint(len(self.data))]
        image, label = (np.load(case[key], mmap_mode="r") for key in ("image", "label"))
        margins = [b - self.patch_size for b in self.box]
        if is_forced_slot(index % 2, 2):
            with np.load(case["foreground"]) as stored:
                voxels = stored[stored.files[random.randint(len(stored.files))]]
            start = [int(v) - b // 2 for v, b in zip(voxels[random.randint(len(voxels))], self.box)]
        else:
            shape = image.shape[1:]
            start = [random.randint(-m // 2, n + m // 2 + m % 2 - b + 1) for m, n, b in zip(margins, shape, self.box)]
        patch = self.transforms(
            image=read_box(image, start, self.box, 0, "image"),
            segmentation=read_box(label, start, self.box, -1, "label").to(torch.int16),
        )
        return {"image": patch["image"], "label": patch["segmentation"]}


def _nnunet_v2_transforms(patch_size: int) -> Callable:
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
    spatial = SpatialTransform(
        (patch_size,) * 3,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-math.pi / 6, math.pi / 6),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    return ComposeTransforms(
        [
            spatial,
            *(RandomTransform(transform, apply_probability=p) for transform, p in sometimes),
            MirrorTransform((0, 1, 2)),
            MaskImageTransform(list(MASK_CHANNELS)),
            RemoveLabelTansform(-1, 0),
        ]
    )
