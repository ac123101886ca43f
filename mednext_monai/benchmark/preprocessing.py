"""The section ``preprocessing``: one case, cropped, resampled to 1 mm and normalized.

Peers: the same steps with the resampling as the original does it, ``skimage.transform.resize`` for the image and for
every label, of which the one with the largest weight is taken; and MONAI's ``CropForegroundd``, ``Spacingd`` and
``NormalizeIntensityd``, which compute something else: another grid, no clipping to the range, the nearest label.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, Spacingd

from mednext_monai.preprocessing.case import PreprocessedCase, preprocess_case
from mednext_monai.preprocessing.geometry import plan_geometry
from mednext_monai.preprocessing.nonzero import bounding_box, crop, fill_holes, mark_outside, nonzero_mask
from mednext_monai.preprocessing.normalization import normalize_channels

from .timing import OURS, Measurement, Step, compare, seconds

__all__ = ["make_ball", "measure_preprocessing"]

SPACING = (0.9, 0.9, 2.3)  # mm; the coarsest is less than three times the finest, so all axes are resampled cubically
PLAN = {"spacing": (1.0, 1.0, 1.0), "normalization": ["zscore"]}
NOTES = {
    "scikit-image": "which of two labels of equal weight is taken depends on rounding.",
    "monai": "Spacingd(mode=3) computes another function: another grid, no clipping, the nearest label.",
}
MONAI = Compose(
    [
        CropForegroundd(["image", "label"], source_key="image", select_fn=lambda x: x != 0, allow_smaller=True),
        Spacingd(["image", "label"], PLAN["spacing"], mode=(3, "nearest"), padding_mode=("nearest", "border")),
        NormalizeIntensityd("image", channel_wise=True),
    ]
)


def measure_preprocessing(options: Namespace) -> Iterator[Measurement]:
    """Preprocess a synthetic case with every pipeline in turn; the throughput counts output voxels."""
    case = _make_case(options.case_shape)
    expected = preprocess_case(*case, PLAN)
    steps: dict[str, Step] = {OURS: partial(preprocess_case, *case, PLAN)}
    if find_spec("skimage"):
        steps["scikit-image"] = partial(_with_skimage, *case)
    steps["monai"] = partial(_with_monai, *case)

    def check(name: str, found: PreprocessedCase | dict) -> dict[str, float]:
        if name == "monai":
            return {}
        error = np.abs(found.image - expected.image).max() / np.abs(expected.image).max()
        return {"output": float(error), "labels": float((found.label != expected.label).mean())}

    compared = compare(steps, seconds, options.repeats, options.warmup, check)
    if "scikit-image" not in steps:
        compared["skipped"]["scikit-image"] = "not installed"
    before, after = ("x".join(map(str, shape)) for shape in (options.case_shape, expected.label.shape))
    work = {"work": expected.label.size / 1e6, "work_unit": "Mvoxel/s"}
    notes = [f"{name}: {note}" for name, note in NOTES.items() if name in compared["values"]]
    yield Measurement("preprocessing", f"{before} to {after}, 4 labels", "s", **compared, **work, notes=notes)


def make_ball(shape: tuple[int, ...], phase: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from the center of a bumpy ball and its three nested classes (int8), both ``(X, Y, Z)``."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0)) + 0.1 * np.sin(7 * grid[0] + phase) * np.cos(5 * grid[1])
    return radius, np.select([radius < 0.2, radius < 0.35, radius < 0.5], [3, 2, 1], 0).astype(np.int8)


def _make_case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a ball surrounded by zeros: image ``(1, X, Y, Z)``, label ``(X, Y, Z)``, affine ``(4, 4)``."""
    radius, label = make_ball(shape)
    noise = np.random.RandomState(0).standard_normal(shape)
    image = np.where(radius < 0.95, 10 + np.cos(9 * radius) + 0.2 * noise, 0)[None].astype(np.float32)
    return image, label, np.diag([*SPACING, 1.0])


def _with_skimage(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> PreprocessedCase:
    """:py:func:`preprocess_case`, with every array resampled by scikit-image in float64."""
    from skimage.transform import resize

    mask = nonzero_mask(image)
    start, stop = bounding_box(mask)
    geometry = plan_geometry(image.shape[1:], affine, start, stop, PLAN["spacing"])
    shape, how = geometry.resampled_shape, {"mode": "edge", "clip": True, "anti_aliasing": False}
    label = mark_outside(crop(label, start, stop), fill_holes(crop(mask, start, stop)))
    resampled, largest = np.zeros(shape, label.dtype), np.zeros(shape)
    for value in np.unique(label):
        weight = resize((label == value).astype(float), shape, order=1, **how)
        resampled[weight > largest] = value
        np.maximum(largest, weight, out=largest)
    channels = [resize(channel.astype(float), shape, order=3, **how) for channel in crop(image, start, stop)]
    return PreprocessedCase(normalize_channels(np.stack(channels), PLAN["normalization"]), resampled, geometry)


def _with_monai(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> dict[str, MetaTensor]:
    arrays = {"image": image, "label": label[None]}
    return MONAI({key: MetaTensor(torch.from_numpy(array), affine=affine) for key, array in arrays.items()})
