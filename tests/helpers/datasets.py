"""Small synthetic data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

AFFINE = np.array([[1.0, 0, 0, -20], [0, 1, 0, 30], [0, 0, 2, 7], [0, 0, 0, 1]])  # 1 x 1 x 2 mm, non-zero origin
SHAPE = (20, 18, 12)


def make_case(seed: int, channels: int = 1, shape: tuple = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return an image ``(*shape, channels)`` of positive noise and a label with boxes of the classes 1 and 2."""
    image = np.random.default_rng(seed).uniform(1, 100, (*shape, channels)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    label[3:9, 4:10, 2:6] = 1
    label[10:14, 4:10, 6 : 8 + seed % 3] = 2
    return image, label


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write an array as NIfTI, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_decathlon(directory: Path, cases: int = 6, channels: tuple = ("MRI",), shape: tuple = SHAPE) -> Path:
    """Write a Decathlon data set whose case ids are ``case_00``, ``case_01``, ..."""
    training = []
    for i in range(cases):
        image, label = make_case(i, len(channels), shape)
        save(directory / f"imagesTr/case_{i:02d}.nii.gz", image if len(channels) > 1 else image[..., 0])
        save(directory / f"labelsTr/case_{i:02d}.nii.gz", label)
        training.append({"image": f"./imagesTr/case_{i:02d}.nii.gz", "label": f"./labelsTr/case_{i:02d}.nii.gz"})
    describe(
        directory,
        name="Synthetic",
        modality={str(i): name for i, name in enumerate(channels)},
        labels={"0": "background", "1": "one", "2": "two"},
        training=training,
    )
    return directory


def make_nnunet(directory: Path, version: int, cases: int = 6, channels: tuple = ("T1", "T2"), ending: str = ".nii.gz"):
    """Write an nnU-Net raw data set of version 1 or 2: one file per channel."""
    for i in range(cases):
        image, label = make_case(i, len(channels))
        for c in range(len(channels)):
            save(directory / f"imagesTr/case_{i:02d}_{c:04d}{ending}", image[..., c])
        save(directory / f"labelsTr/case_{i:02d}{ending}", label)
    names = {str(i): name for i, name in enumerate(channels)}
    if version == 1:
        training = [
            {"image": f"./imagesTr/case_{i:02d}{ending}", "label": f"./labelsTr/case_{i:02d}{ending}"}
            for i in range(cases)
        ]
        describe(directory, modality=names, labels={"0": "background", "1": "one", "2": "two"}, training=training)
    else:
        labels = {"background": 0, "one": 1, "two": 2}
        describe(directory, channel_names=names, labels=labels, file_ending=ending, numTraining=cases)
    return directory


def describe(directory: Path, **entries) -> None:
    """Write dataset.json, or change entries of the one that is there."""
    path = directory / "dataset.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **entries}))


BOX_AFFINE = np.array([[-1.1, 0.1, 0, 30], [0.1, 0.9, 0.05, -20], [0, 0, 1.3, 12], [0, 0, 0, 1]])
BOX_SHAPE = (34, 38, 30)


def write_box_case(folder: Path, name: str, seed: int, labeled: bool = True) -> None:
    """Write an image with a bright box (class 1) and, inside it, a brighter one (class 2)."""
    label = np.zeros(BOX_SHAPE, np.uint8)
    start = np.random.RandomState(seed).randint(4, 12, 3)
    label[tuple(slice(s, s + 14) for s in start)] = 1
    label[tuple(slice(s + 4, s + 10) for s in start)] = 2
    image = 10 + 5 * label + np.random.RandomState(seed + 100).randn(*BOX_SHAPE)
    for part, values in (("images", image.astype(np.float32)), ("labels", label))[: 2 if labeled else 1]:
        save(folder / (part + ("Tr" if labeled else "Ts")) / f"{name}.nii.gz", values, BOX_AFFINE)


def make_boxes(directory: Path) -> Path:
    """Write six training cases and one test case of 34 x 38 x 30 voxels in Decathlon layout, three classes."""
    names = [f"box_{i}" for i in range(6)]
    for i, name in enumerate(names):
        write_box_case(directory, name, i)
    write_box_case(directory, "box_9", 9, labeled=False)
    describe(
        directory,
        name="Boxes",
        modality={"0": "MRI"},
        labels={"0": "background", "1": "outer", "2": "inner"},
        training=[{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        test=["./imagesTs/box_9.nii.gz"],
    )
    return directory


def make_regions(directory: Path, cases: int = 6) -> Path:
    """
    Write an nnU-Net v2 data set of three regions, one in the other: the boxes of ``write_box_case`` and their core.

    The last ten slices are not annotated.
    """
    for i in range(cases):
        write_box_case(directory, f"case_{i}", i)
        label = np.asanyarray(nib.load(directory / f"labelsTr/case_{i}.nii.gz").dataobj).copy()
        x, y, z = np.argwhere(label == 2)[0]
        label[x + 2 : x + 5, y + 2 : y + 5, z + 2 : z + 5] = 3
        label[:, :, 20:] = 4
        save(directory / f"labelsTr/case_{i}.nii.gz", label, BOX_AFFINE)
        (directory / f"imagesTr/case_{i}.nii.gz").rename(directory / f"imagesTr/case_{i}_0000.nii.gz")
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "center": 3, "ignore": 4}
    describe(
        directory,
        channel_names={"0": "MRI"},
        labels=labels,
        regions_class_order=[1, 2, 3],
        file_ending=".nii.gz",
        numTraining=cases,
    )
    return directory


def make_pictures(directory: Path, ending: str = ".png", cases: int = 6, channels: int = 1, bits: int = 8) -> Path:
    """Write an nnU-Net v2 data set of pictures, about 44 x 40: a bright disc, class 1, in it a colored one, class 2."""
    for i in range(cases + 1):
        image, label = make_picture(i, channels, bits)
        part = "Tr" if i < cases else "Ts"
        save_picture(directory / f"images{part}/case_{i}_0000{ending}", image)
        if part == "Tr":
            save_picture(directory / f"labelsTr/case_{i}{ending}", label)
    names = {str(c): name for c, name in enumerate(["red", "green", "blue"][:channels])}
    labels = {"background": 0, "disc": 1, "core": 2}
    describe(directory, channel_names=names, labels=labels, file_ending=ending, numTraining=cases)
    return directory


def make_picture(seed: int, channels: int = 1, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return an image ``(Y, X)`` or ``(Y, X, C)`` and its label ``(Y, X)``."""
    random = np.random.RandomState(seed)
    height, width = 44 + seed % 3, 40
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y - random.randint(16, 28), x - random.randint(14, 26))
    label = (distance < 12).astype(np.uint8) + (distance < 6)
    image = 40 + 60 * (label > 0)[..., None] + random.randint(0, 30, (height, width, channels))
    image[..., -1] += 50 * (label == 2)
    image = (image * (256 if bits == 16 else 1)).astype(np.uint16 if bits == 16 else np.uint8)
    return image if channels > 1 else image[..., 0], label


def save_picture(path: Path, array: np.ndarray) -> None:
    """Write an array ``(Y, X)`` or ``(Y, X, C)`` as PNG or TIFF, or ``(Y, X)`` as NIfTI of one slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.suffix == ".tif":
        pytest.importorskip("tifffile").imwrite(path, array, planarconfig="contig" if array.ndim == 3 else None)
    else:
        nib.save(nib.Nifti1Image(array.T[..., None], np.diag([1.0, 1.0, 5.0, 1.0])), path)


CASE_AFFINE = np.diag([1.5, 1, 2, 1.0])


def write_case(folder: Path, name: str, seed: int, labeled: bool = True) -> dict:
    """Write a case of 10 x 12 x 9 voxels with a zero border and one class; return its files."""
    folder.mkdir(exist_ok=True)
    random = np.random.RandomState(seed)
    image = random.rand(10, 12, 9).astype(np.float32) + 1
    image[:2] = 0
    label = np.zeros(image.shape, np.uint8)
    label[4:8, 3:9, 2:6] = 1
    case = {"id": name, "image": str(folder / f"{name}_0000.nii.gz"), "label": None}
    nib.save(nib.Nifti1Image(image, CASE_AFFINE), case["image"])
    if labeled:
        case["label"] = str(folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, CASE_AFFINE), case["label"])
    return case


def rotated_affine(spacing=(2.0, 0.7, 1.2), origin=(-90.5, 33.0, 210.25)) -> np.ndarray:
    """Rotated by 0.4 rad about x and 0.3 rad about z, one axis flipped, and far from the origin."""
    c, s = np.cos(0.4), np.sin(0.4)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(0.3), np.sin(0.3)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-1, 1, 1]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def example(shape=(14, 22, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Two channels, zero at the borders and in a hole; two nested classes and a labeled voxel outside the region."""
    random = np.random.RandomState(0)
    image = (ndimage.gaussian_filter(random.randn(2, *shape), (0, 1, 1, 1)) * 200 + 60).astype(np.float32)
    image[:, :2] = image[:, -3:] = image[:, :, :4] = image[..., -1:] = 0
    image[:, 5:8, 8:12, 6:9] = 0
    image[:, 2:5, 4:8, 0:4] = 0  # a corner of the box that is outside
    label = np.zeros(shape, dtype=np.int8)
    label[4:10, 7:17, 5:12] = 1
    label[6:9, 9:13, 7:10] = 2
    label[0, 0, 0] = label[3, 5, 1] = 1
    return image, label


def rewrite(path: str, change, affine=None) -> None:
    """Replace the values of a NIfTI file by ``change(values)``, and its affine if one is given."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine if affine is None else affine), path)
