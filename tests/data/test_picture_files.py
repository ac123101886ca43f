"""PNG and TIFF as images of one slice, and segmentations in these formats."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.datasets import make_picture, save, save_picture
from PIL import Image

from mednext_monai.data import inference_cases, read_image, read_label, write_segmentation
from mednext_monai.data.checks import Expected, check_case
from mednext_monai.data.io import is_ours, read_digest, read_grid, read_stored, result_ending
from mednext_monai.evaluation.cases import files_by_case

ENDINGS = [".png", ".tif"]


def write(path, array) -> str:
    if path.suffix == ".tif":
        pytest.importorskip("tifffile")
    save_picture(path, array)
    return str(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("channels, bits", [(1, 8), (1, 16), (3, 8)])
def test_pixels_have_the_axes_of_a_nifti_file_and_colors_are_channels(ending, channels, bits, tmp_path):
    picture, _ = make_picture(0, channels, bits)
    path = write(tmp_path / f"case{ending}", picture)
    image, affine = read_image(path)
    expected = np.moveaxis(picture.reshape(44, 40, channels), (0, 1, 2), (2, 1, 0))
    np.testing.assert_array_equal(image[..., 0], expected.astype(np.float32))
    assert image.shape == (channels, 40, 44, 1) == read_grid(path)[0]
    np.testing.assert_array_equal(affine, np.diag([-1, -1, 1, 1]))


def test_16_bit_colors_and_floats_are_read_from_tiff_and_refused_as_png(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    picture, _ = make_picture(0, 3, 16)
    np.testing.assert_array_equal(read_stored(write(tmp_path / "a.tif", picture))[0][1, :, :, 0], picture[..., 1].T)
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(picture, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_stored(tmp_path / "planes.tif")[0][2, :, :, 0], picture[..., 2].T)
    tifffile.imwrite(tmp_path / "float.tif", picture[..., 0] / np.float32(7))
    assert read_stored(tmp_path / "float.tif")[0].dtype == np.float32
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match="stack.tif: has 5 pages.* store a volume as NIfTI"):
        read_stored(tmp_path / "stack.tif")
    header = bytearray(b"\x89PNG\r\n\x1a\n" + 18 * b"\0")
    header[24:26] = 16, 2
    (tmp_path / "deep.png").write_bytes(bytes(header))
    with pytest.raises(ValueError, match="deep.png: has 16-bit colors, which are read from TIFF only"):
        read_stored(tmp_path / "deep.png")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_pictures_are_named(ending, tmp_path):
    path = write(tmp_path / f"case{ending}", make_picture(0)[0])
    content = (tmp_path / f"case{ending}").read_bytes()
    (tmp_path / f"case{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"case{ending}: cannot be read as an image"):
        read_image(path)
    (tmp_path / f"case{ending}").write_bytes(b"")
    with pytest.raises(ValueError, match=f"case{ending}: cannot be read as an image"):
        read_image(path)
    assert not is_ours(path)


@pytest.mark.parametrize("ending", [*ENDINGS, ".tiff"])
@pytest.mark.parametrize("classes", [3, 300])
def test_a_segmentation_is_written_in_the_format_of_its_image_with_a_digest(ending, classes, tmp_path):
    if ending != ".png":
        pytest.importorskip("tifffile")
    labels = np.random.RandomState(0).randint(0, classes, (30, 20, 1)).astype(np.int16)
    path = tmp_path / f"case{ending}"
    assert result_ending(path) == ending and result_ending("case.nrrd") == ".nii.gz"
    write_segmentation(labels, path, digest="0123-ab")
    np.testing.assert_array_equal(read_label(path)[0], labels)
    assert read_digest(path) == "0123-ab" and is_ours(path)
    if ending == ".png":
        with Image.open(path) as picture:
            assert picture.size == (30, 20) and picture.mode == ("L" if classes == 3 else "I;16")
    with pytest.raises(ValueError, match="a picture has one slice, got class indices of shape"):
        write_segmentation(np.zeros((30, 20, 2), np.uint8), path)
    assert not is_ours(write(tmp_path / f"other{'.tif' if ending == '.tiff' else ending}", make_picture(0)[0]))


def test_a_palette_is_the_label_s_values_but_no_image(tmp_path):
    _, label = make_picture(0)
    picture = Image.fromarray(label).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "case.png")
    np.testing.assert_array_equal(read_label(tmp_path / "case.png")[0][..., 0], label.T)
    check, _ = check_case({"id": "case", "image": str(tmp_path / "case.png")}, Expected(1))
    assert "case.png: has a palette" in check.problems[0]
    write(tmp_path / "one.png", label > 0)
    assert set(np.unique(read_label(tmp_path / "one.png")[0])) == {0, 1}


def test_pictures_beside_volumes_illustrate_them(tmp_path):
    save(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.uint8))
    write(tmp_path / "a.png", make_picture(0)[0])
    assert [case["id"] for case in inference_cases("", str(tmp_path))] == ["a"]
    assert files_by_case(tmp_path) == {"a": str(tmp_path / "a.nii.gz")}
    (tmp_path / "a.nii.gz").unlink()
    assert files_by_case(tmp_path) == {"a": str(tmp_path / "a.png")}


def test_colors_in_one_file_and_channels_in_several_are_found(tmp_path):
    for case in ("x_0000", "y_0000"):
        write(tmp_path / "colors" / f"{case}.png", make_picture(0, 3)[0])
    found = inference_cases("", str(tmp_path / "colors"), in_channels=3)
    assert [case["id"] for case in found] == ["x", "y"]
    for channel in range(2):
        write(tmp_path / "split" / f"x_{channel:04d}.png", make_picture(0)[0])
    found = inference_cases("", str(tmp_path / "split"), in_channels=2)
    assert [(case["id"], len(case["image"])) for case in found] == [("x", 2)]
