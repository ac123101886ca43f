"""Promises of pictures: true proportions, true directions, each class in its color, errors that name files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mednext_monai.pictures import COLORS, OPACITY, TILE, draw_slices, save_overlay

SHAPE = (20, 30, 10)
SPACING = (1.0, 1.0, 3.0)  # 20 x 30 x 30 mm


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return path


@pytest.fixture
def case(tmp_path) -> tuple[Path, Path]:
    """A gray image of 100 everywhere; a label of class 1 in the patient's left, anterior, superior corner."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 18:28, 6:9] = 1  # the axes run to the right, anterior and superior: small x is the patient's left
    image = save(tmp_path / "case_07.nii.gz", np.full(SHAPE, 100, np.int16))
    return image, save(tmp_path / "label.nii.gz", label)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of what is set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def outlined(picture: np.ndarray, value: int = 1) -> np.ndarray:
    """Return which pixels have the contour color of a class, the legend left out."""
    mask = (picture == COLORS[value - 1]).all(-1)
    mask[-40:] = False
    return mask


def test_proportions_are_those_in_mm(case, tmp_path):
    picture = pixels(save_overlay(*case, tmp_path / "out.png"))
    found = outlined(picture)
    scale = TILE / 30  # pixels per mm: the longest edge is 30 mm
    axial = found[: 2 * 12 + 24 + 12 + TILE]
    top, bottom, left, right = box(axial)
    assert [bottom - top, right - left] == pytest.approx([10 * scale, 6 * scale], abs=2)
    below = found[top + TILE :]  # coronal and sagittal: 3 slices of 3 mm high
    heights = [size for size in (np.diff(np.flatnonzero(np.diff(below.any(1).astype(int))))).tolist()]
    assert heights[0] == pytest.approx(9 * scale, abs=2)


def test_directions_are_those_of_a_radiologist(case, tmp_path):
    picture = pixels(save_overlay(*case, tmp_path / "out.png"))
    top, bottom, left, right = box(outlined(picture)[:340])
    tile_top, tile_left = 12 + 2 * 24, picture.shape[1] - 12 - TILE  # the sagittal tile is the widest, 30 mm
    center = (tile_left + TILE / 2, tile_top + TILE / 2)
    assert (left + right) / 2 > center[0]  # the patient's left is at the right
    assert (top + bottom) / 2 < center[1]  # anterior is at the top


def test_axes_stored_the_other_way_give_the_same_picture(case, tmp_path):
    expected = pixels(save_overlay(*case, tmp_path / "expected.png"))
    flipped = []
    for path in case:
        nifti = nib.load(path)
        order = nib.orientations.axcodes2ornt("PSL")
        ornt = nib.orientations.ornt_transform(nib.io_orientation(nifti.affine), order)
        flipped.append(tmp_path / "other" / path.name)
        flipped[-1].parent.mkdir(exist_ok=True)
        nib.save(nifti.as_reoriented(ornt), flipped[-1])
    assert nib.load(flipped[0]).shape == (30, 10, 20)
    np.testing.assert_array_equal(pixels(save_overlay(*flipped, tmp_path / "flipped.png")), expected)


def test_inside_is_transparent_and_the_image_column_is_left_alone(case, tmp_path):
    picture = pixels(save_overlay(*case, tmp_path / "out.png"))
    top, bottom, left, right = box(outlined(picture)[:340])
    gray = 255
    inside = picture[(top + bottom) // 2, (left + right) // 2]
    np.testing.assert_allclose(inside, (1 - OPACITY) * gray + OPACITY * np.array(COLORS[0]), atol=1)
    alone = picture[:-40, 40 : 40 + TILE // 2]
    assert (np.ptp(alone, axis=-1) == 0).all()  # no color


def test_reference_has_a_column_of_its_own(case, tmp_path):
    image, label = case
    reference = np.zeros(SHAPE, np.uint8)
    reference[2:8, 2:8, 7] = 3
    without = pixels(save_overlay(image, label, tmp_path / "a.png"))
    reference_path = save(tmp_path / "ref.nii", reference)
    names = {1: "liver", 3: "spleen"}
    picture = pixels(save_overlay(image, label, tmp_path / "b.png", reference_path, names))
    assert picture.shape[1] == without.shape[1] + TILE + 12
    _, _, left, _ = box(outlined(picture, 3))
    assert left > without.shape[1] - 12
    assert box(outlined(picture, 1)) == box(outlined(without, 1))
    assert (picture[-36:] == COLORS[2]).all(-1).any()  # the legend


@pytest.mark.parametrize("fill", [0, 1])
def test_label_that_is_empty_or_full_is_drawn(tmp_path, fill):
    image = save(tmp_path / "image.nii", np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32))
    label = save(tmp_path / "label.nii", np.full(SHAPE, fill, np.uint8))
    assert save_overlay(image, label, tmp_path / "new" / "out.png").is_file()


def test_many_classes_and_a_blank_image_are_drawn(tmp_path):
    label = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 40).astype(np.float64)
    image = save(tmp_path / "image.nii", np.zeros(SHAPE, np.float32))
    label = save(tmp_path / "label.nii", label)
    assert save_overlay(image, label, tmp_path / "out.png").is_file()


def test_other_grid_is_an_error_that_names_both(case, tmp_path):
    other = save(tmp_path / "other.nii.gz", np.zeros((20, 30, 11), np.uint8))
    with pytest.raises(
        ValueError, match=r"other.nii.gz: has shape \(20, 30, 11\), but the image .*case_07.* \(20, 30, 10\)"
    ):
        save_overlay(case[0], other, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_files_that_cannot_be_drawn_are_named(case, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(case[0].read_bytes()[:60])
    with pytest.raises(ValueError, match="broken.nii.gz: cannot be read"):
        save_overlay(broken, case[1], tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"flat.nii: .*\(4, 4\)"):
        save_overlay(save(tmp_path / "flat.nii", np.zeros((4, 4), np.uint8)), case[1], tmp_path / "out.png")
    with pytest.raises((FileNotFoundError, ValueError), match="absent.nii"):
        save_overlay(tmp_path / "absent.nii", case[1], tmp_path / "out.png")


def test_a_given_width_makes_a_small_file_with_the_same_class_colors(case, tmp_path):
    image, label = case
    noise = save(tmp_path / "noise.nii", np.random.default_rng(0).uniform(1, 100, SHAPE).astype(np.float32))
    full = save_overlay(noise, label, tmp_path / "full.png", label)
    small = save_overlay(noise, label, tmp_path / "small.png", label, width=640)
    assert 630 <= Image.open(small).width <= 640 < Image.open(full).width
    assert small.stat().st_size < full.stat().st_size / 2
    assert outlined(pixels(small)).any()


def test_slices_show_the_most_foreground_in_true_proportions():
    image, label = np.full(SHAPE, 50.0), np.zeros(SHAPE, np.int16)
    label[16:18, 20:28, 7:9] = 1
    label[16, 22, 8] = 2
    label[3, 24, 8] = 1  # one voxel more in the slices 24 and 8
    slices = draw_slices(image, label, SPACING, (0, 100))
    assert list(slices) == ["axial slice 8", "coronal slice 24", "sagittal slice 16"]
    scale = TILE / 30
    sizes = [(20 * scale, 30 * scale), (20 * scale, 30 * scale), (30 * scale, 30 * scale)]  # 20 x 30 x 30 mm
    assert [picture.size for picture in slices.values()] == [tuple(map(round, size)) for size in sizes]
    axial = np.asarray(slices["axial slice 8"]).astype(int)
    assert [(axial == color).all(-1).any() for color in COLORS[:3]] == [True, True, False]


def test_slices_of_an_empty_label_are_in_the_middle():
    slices = draw_slices(np.ones(SHAPE), np.zeros(SHAPE, np.int16), SPACING, (0, 1))
    assert list(slices) == ["axial slice 5", "coronal slice 15", "sagittal slice 10"]
