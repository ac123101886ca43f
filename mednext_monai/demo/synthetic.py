"""A small synthetic data set in Decathlon layout, for a first run and for tests; no real anatomy.

Each scan shows a body with three structures that cannot be distinguished by intensity alone:

1. *organ*: a textured ellipsoid, brighter than the body;
2. *core*: an ellipsoid inside the organ, as dark as the body;
3. *vessel*: a bent tube, as bright as a few balls that are background.

As in real scans, the spacing is anisotropic and differs between cases, axes are oblique to the scanner's and may be
flipped, and the image has a smooth bias field and noise. Outside the body it is zero.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from ..files import write_atomically

__all__ = ["LABELS", "make_case", "make_hippocampus", "write_dataset", "write_volume"]

LABELS = {0: "background", 1: "organ", 2: "core", 3: "vessel"}
BRIGHTNESS = {"body": 300.0, "organ": 600.0, "core": 300.0, "vessel": 900.0}  # arbitrary units, as in MR
NOISE = 30.0  # standard deviation, in the same units
BIAS = 0.15  # standard deviation of the bias field, relative
IN_PLANE = (0.9, 1.2)  # mm, spacing of the first two axes
BETWEEN_SLICES = (1.5, 2.5)  # mm, spacing of the third
MAX_TILT = 20.0  # degrees, between the image's axes and the scanner's
MAX_OFFSET = 120.0  # mm, of the volume's center from the scanner's origin


def write_dataset(
    output_dir: str | Path,
    num_training: int = 10,
    num_test: int = 2,
    seed: int = 0,
    extent: tuple[float, float] = (56.0, 70.0),
) -> Path:
    """
    Write ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs`` and the test cases' reference, ``labelsTs``.

    The same arguments give the same bytes. A case depends on the seed and its index, not on the number of cases.

    Args:
        output_dir: output folder; existing files are overwritten.
        num_training: number of cases with labels, for training and validation. Defaults to 10.
        num_test: number of cases to segment. Defaults to 2.
        seed: random seed, a non-negative integer. Defaults to 0.
        extent: smallest and largest edge length of a volume in mm. Defaults to (56, 70): about 64 voxels of 1 mm.

    Returns:
        The output folder.

    Raises:
        ValueError: if ``num_training`` is less than 1, ``num_test`` or ``seed`` negative or ``extent`` too small.
    """
    if num_training < 1 or num_test < 0 or seed < 0:
        raise ValueError(
            f"num_training must be at least 1, num_test and seed at least 0, got {num_training}, {num_test}, {seed}."
        )
    if not 16 <= extent[0] <= extent[1]:
        raise ValueError(f"extent must be (smallest, largest) length in mm, 16 or more, got {tuple(extent)}.")
    folder = Path(output_dir)
    training = [_write_case(folder, "Tr", index, seed, extent) for index in range(num_training)]
    test = [_write_case(folder, "Ts", index, seed, extent) for index in range(num_test)]
    content = {
        "name": "Synthetic",
        "description": "Synthetic structures drawn by mednext_monai.demo.synthetic; no real anatomy",
        "tensorImageSize": "3D",
        "modality": {"0": "synthetic"},
        "labels": {str(value): name for value, name in LABELS.items()},
        "numTraining": num_training,
        "numTest": num_test,
        "training": training,
        "test": [case["image"] for case in test],
    }
    write_atomically(folder / "dataset.json", (json.dumps(content, indent=2) + "\n").encode())
    return folder


def make_case(
    rng: np.random.Generator, extent: tuple[float, float] = (56.0, 70.0)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw one case.

    Args:
        rng: random number generator.
        extent: smallest and largest edge length of the volume in mm. Defaults to (56, 70).

    Returns:
        The image ``(X, Y, Z)``, int16; the label of the same shape, uint8, with the values of ``LABELS``; the affine
        ``(4, 4)``, voxel indices to mm in RAS space.
    """
    spacing = np.array([*rng.uniform(*IN_PLANE, size=2), rng.uniform(*BETWEEN_SLICES)])
    shape = np.maximum(8, np.rint(rng.uniform(*extent, size=3) / spacing)).astype(int)
    # Positions relative to the volume's center, in units of half its smallest edge.
    scale = (shape * spacing).min() / 2
    axes = [(np.arange(n) - (n - 1) / 2) * step / scale for n, step in zip(shape, spacing)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))

    body = _ellipsoid(grid, np.zeros(3), (shape * spacing) / 2 / scale * rng.uniform(0.93, 0.98, size=3))
    label, center = _draw_label(rng, grid, body)
    image = np.full(shape, BRIGHTNESS["body"])
    for value in (1, 2, 3):
        image[label == value] = BRIGHTNESS[LABELS[value]]
    image[_distractors(rng, grid, center) & body & (label == 0)] = BRIGHTNESS["vessel"]

    grain = _smooth_noise(rng, 1.5 / spacing, shape)  # grains of 1.5 mm
    image += np.where(label == 1, 120.0, 25.0) * grain
    image = gaussian_filter(image, 0.4 / spacing)  # partial volume at the edges
    image *= 1 + BIAS * _smooth_noise(rng, 25.0 / spacing, shape)
    image = (image + rng.normal(0, NOISE, shape)) * rng.uniform(0.8, 1.25)
    image = np.where(body, np.clip(np.rint(image), 1, 32767), 0).astype(np.int16)
    directions = rng.choice([-1, 1], size=3)  # flips the axes in the file, not the body
    stored = tuple(slice(None, None, direction) for direction in directions)
    return image[stored], label[stored], _affine(rng, spacing * directions, shape)


def make_hippocampus(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw a T1-weighted MR of the surroundings of a hippocampus, as simple shapes.

    The hippocampus is a bent tube, thicker in front, as dark as cortex, between white matter below and at its side and
    dark fluid above its head. It shows that released weights work; it is no test of how well.

    Args:
        rng: random number generator.

    Returns:
        The image ``(35, 50, 36)`` at 1 mm, int16; the label, uint8: 1 anterior, 2 posterior; the affine ``(4, 4)``.
    """
    shape = np.array([35, 50, 36])
    x, y, z = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + rng.uniform(-1, 1, size=3)[:, None, None, None]
    )
    along = np.clip(y, 7, 42)
    height = z - (24.5 - 0.68 * (along - 8) + 0.008 * (along - 8) ** 2)  # above the axis of the tube
    side = x - (12.5 + 0.1 * (along - 8))
    thickness = 3.4 + 1.6 / (1 + np.exp(-(along - 28) / 3))
    distance = (
        np.sqrt((side / 1.75) ** 2 + height**2 + ((y - along) * 1.2) ** 2) - thickness
    )  # about mm from its surface
    image = np.where(height > 0, np.where(y - 0.4 * z > 26, 1.0, 1.75), 1.0)  # amygdala and cortex; thalamus
    image = np.where((distance < 4.0) & (height < 0.3 * side), 2.0, image)  # white matter
    image = np.where((distance < 2.2) & (height > 1) & (y > 22) & (y < 40), 0.45, image)  # fluid
    inside = distance < 0
    image = np.where(inside, 1.0, image)
    label = np.where(inside, np.where(y > 27, 1, 2), 0).astype(np.uint8)
    image = gaussian_filter(image, 0.7) * (1 + 0.06 * _smooth_noise(rng, np.full(3, 2.5), shape))
    image = 380 * (image + 0.05 * rng.normal(size=shape))
    return np.clip(np.rint(image), 1, None).astype(np.int16), label, np.diag([1.0, 1.0, 1.0, 1.0])


def write_volume(array: np.ndarray, affine: np.ndarray, file: Path) -> None:
    """Write a volume as ``.nii.gz``; the same volume gives the same bytes."""
    nifti = nib.Nifti1Image(array, affine)
    nifti.set_qform(affine, code=1)  # 1: the scanner's coordinates
    nifti.set_sform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    write_atomically(file, gzip.compress(nifti.to_bytes(), compresslevel=6, mtime=0))


def _draw_label(rng: np.random.Generator, grid: np.ndarray, body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label and the center of the organ."""
    label = np.zeros(body.shape, np.uint8)
    center = rng.uniform([-0.35, -0.2, -0.15], [-0.15, 0.2, 0.15])
    bent = grid + 0.06 * np.sin(3 * grid[[1, 2, 0]] + rng.uniform(0, 2 * np.pi, size=3)[:, None, None, None])
    radii = rng.uniform([0.36, 0.42, 0.42], [0.46, 0.54, 0.54])
    organ = _ellipsoid(bent, center, radii, _rotation(rng, 30))
    core = _ellipsoid(bent, center + rng.uniform(-0.08, 0.08, size=3), radii * rng.uniform(0.5, 0.62))
    label[organ] = 1
    label[organ & core] = 2
    label[_tube(rng, grid, center[0] + radii.max())] = 3
    label[~body] = 0
    return label, center


def _tube(rng: np.random.Generator, grid: np.ndarray, start: float) -> np.ndarray:
    """Return a tube along the third axis, beside the organ."""
    x, y, z = grid
    phase, along = rng.uniform(0, 2 * np.pi, size=2)
    radius = rng.uniform(0.13, 0.17)
    center_x = min(start + radius + 0.1, 0.6) + 0.08 * np.sin(2.5 * z + phase)
    center_y = rng.uniform(-0.25, 0.25) + 0.15 * np.sin(2 * z + along)
    return ((x - center_x) ** 2 + (y - center_y) ** 2 < radius**2) & (np.abs(z) < 0.8)


def _distractors(rng: np.random.Generator, grid: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return three balls on the organ's side of the body."""
    balls = np.zeros(grid.shape[1:], bool)
    for angle in rng.uniform(0, 2 * np.pi / 3) + np.arange(3) * 2 * np.pi / 3:
        place = np.array([center[0] - 0.1, 0.72 * np.cos(angle), 0.72 * np.sin(angle)])
        balls |= _ellipsoid(grid, place, np.full(3, rng.uniform(0.11, 0.14)))
    return balls


def _ellipsoid(
    grid: np.ndarray, center: np.ndarray, radii: np.ndarray, rotation: np.ndarray | None = None
) -> np.ndarray:
    """Return the mask of an ellipsoid on the grid of positions ``(3, X, Y, Z)``."""
    offset = grid - center[:, None, None, None]
    if rotation is not None:
        offset = np.einsum("ij,jxyz->ixyz", rotation, offset)
    return ((offset / radii[:, None, None, None]) ** 2).sum(0) < 1


def _smooth_noise(rng: np.random.Generator, sigma: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return noise with mean 0, standard deviation 1 and the given smoothness in voxels."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _affine(rng: np.random.Generator, steps: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return an oblique affine with the given steps in mm and a random offset of the volume's center."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng, MAX_TILT) @ np.diag(steps)
    affine[:3, 3] = rng.uniform(-MAX_OFFSET, MAX_OFFSET, size=3) - affine[:3, :3] @ ((shape - 1) / 2)
    return affine


def _rotation(rng: np.random.Generator, max_degrees: float) -> np.ndarray:
    """Return a rotation about a random axis by between a quarter of ``max_degrees`` and ``max_degrees``."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(max_degrees / 4, max_degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _write_case(folder: Path, part: str, index: int, seed: int, extent: tuple[float, float]) -> dict[str, str]:
    """Write image and label of one case and return their entry in ``dataset.json``."""
    name = f"synthetic_{'test_' if part == 'Ts' else ''}{index:02d}.nii.gz"
    rng = np.random.default_rng([seed, 0 if part == "Tr" else 1, index])
    image, label, affine = make_case(rng, extent)
    entry = {}
    for kind, array in (("image", image), ("label", label)):
        entry[kind] = f"./{kind}s{part}/{name}"
        write_volume(array, affine, folder / entry[kind])
    return entry
