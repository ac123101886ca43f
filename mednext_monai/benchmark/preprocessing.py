"""The section ``preprocessing``: one case, cropped, resampled to 1 mm and normalised.

Peers: the same steps with the resampling as the original does it, ``skimage.transform.resize`` for the image and for
every label, of which the one with the largest weight wins; and MONAI's ``CropForegroundd``, ``Spacingd`` and
``NormalizeIntensityd``, which compute something else: another grid, no clipping to the range, the nearest label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, Spacingd

from mednext_monai.preprocessing.case import PreprocessedCase, preprocess_case
from mednext_monai.preprocessing.geometry import plan_geometry
from mednext_monai.preprocessing.nonzero import bounding_box, crop, fill_holes, mark_outside, nonzero_mask
from mednext_monai.preprocessing.normalization import normalize_channels

from .options import Options
from .timing import OURS, Measurement, compare

__all__ = ["make_case", "measure_preprocessing"]

SPACING = (0.9, 0.9, 2.3)  # mm; cubic along all axes, the coarsest is less than three times the finest
PLAN = {"spacing": (1.0, 1.0, 1.0), "normalization": ["zscore"]}
NOTES = [
    "scikit-image: which of two labels of equal weight wins is left to rounding.",
    "monai: Spacingd(mode=3) computes another function: another grid, no clipping, the nearest label.",
]


def make_case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball with three nested classes in empty surroundings: image ``(1, X, Y, Z)``, label ``(X, Y, Z)``, affine."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0)) + 0.1 * np.sin(7 * grid[0]) * np.cos(5 * grid[1])
    label = np.select([radius < 0.2, radius < 0.35, radius < 0.5], [3, 2, 1], 0).astype(np.int8)
    noise = np.random.RandomState(0).standard_normal(shape)
    image = np.where(radius < 0.95, 10 + np.cos(9 * radius) + 0.2 * noise, 0)[None].astype(np.float32)
    return image, label, np.diag([*SPACING, 1.0])


def measure_preprocessing(options: Options) -> Iterator[Measurement]:
    """Preprocess a synthetic case through every pipeline in turns; the throughput counts voxels that come out."""
    image, label, affine = make_case(tuple(options.case_shape))
    expected = preprocess_case(image, label, affine, PLAN)
    steps: dict[str, Callable[[], object]] = {OURS: lambda: preprocess_case(image, label, affine, PLAN)}
    missing = {}
    try:
        import skimage.transform

        steps["scikit-image"] = lambda: _with_skimage(skimage.transform.resize, image, label, affine)
    except ImportError:
        missing["scikit-image"] = "not installed"
    transform = _monai_transform()
    steps["monai"] = lambda: transform(_as_dictionary(image, label, affine))

    def check(name: str, found: PreprocessedCase | dict) -> dict[str, float]:
        if isinstance(found, dict):
            return {}
        error = np.abs(found.image - expected.image).max() / np.abs(expected.image).max()
        return {"output": float(error), "labels": float((found.label != expected.label).mean())}

    compared = compare(steps, check, options.repeats, options.warmup)
    compared["skipped"] |= missing
    sizes = ["x".join(map(str, shape)) for shape in (options.case_shape, expected.label.shape)]
    yield Measurement(
        "preprocessing",
        f"{sizes[0]} to {sizes[1]}, 4 labels",
        "s",
        **compared,
        notes=[note for note in NOTES if note.split(":")[0] in compared["values"]],
        work=expected.label.size / 1e6,
        work_unit="Mvoxel/s",
    )


def _with_skimage(resize: Callable, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> PreprocessedCase:
    """:py:func:`preprocess_case`, with every array resampled by scikit-image in float64."""
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


def _monai_transform() -> Compose:
    keys, modes = ["image", "label"], (3, "nearest")
    return Compose(
        [
            CropForegroundd(keys, source_key="image", select_fn=lambda x: x != 0, allow_smaller=True),
            Spacingd(keys, PLAN["spacing"], mode=modes, padding_mode=("nearest", "border")),
            NormalizeIntensityd("image", channel_wise=True),
        ]
    )


def _as_dictionary(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> dict[str, MetaTensor]:
    arrays = {"image": image, "label": label[None]}
    return {key: MetaTensor(torch.from_numpy(array), affine=affine) for key, array in arrays.items()}
