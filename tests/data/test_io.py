"""Images and labels are read as they are stored, and segmentations written on the grid of their image."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.datasets import make_decathlon, rotated_affine

from mednext_monai.data import (
    check_cases,
    inference_cases,
    io,
)
from mednext_monai.data.io import read_grid, read_image, read_label, strip_ending, write_segmentation


def test_ids_are_file_names_without_ending():
    assert strip_ending("./imagesTr/case.1.nii.gz") == "case.1"
    assert strip_ending("case.NRRD") == "case"
    assert strip_ending("case_0000.mha") == "case_0000"


def test_reading_puts_channels_first(tmp_path):
    make_decathlon(tmp_path, cases=1, channels=("T1", "T2"))
    image, affine = read_image(tmp_path / "imagesTr/case_00.nii.gz")
    assert image.shape == (2, 20, 18, 12) and image.dtype == np.float32
    np.testing.assert_allclose(affine[:3, 3], (-20, 30, 7))


@pytest.mark.parametrize("ending, package", [(".mha", "itk"), (".nrrd", "pynrrd")])
def test_a_format_without_its_package_names_the_package(tmp_path, ending, package):
    if importlib.util.find_spec("itk") or importlib.util.find_spec("nrrd"):
        pytest.skip("the packages are installed")
    (tmp_path / f"case{ending}").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"pip install {package}"):
        read_image(tmp_path / f"case{ending}")


def test_mha_and_nrrd_are_read_where_itk_is_installed(tmp_path):
    itk = pytest.importorskip("itk")
    make_decathlon(tmp_path, cases=1)
    expected, affine = read_image(tmp_path / "imagesTr/case_00.nii.gz")
    picture = itk.imread(str(tmp_path / "imagesTr/case_00.nii.gz"))
    for ending in (".mha", ".nrrd"):
        itk.imwrite(picture, str(tmp_path / f"case{ending}"))
        image, same = read_image(tmp_path / f"case{ending}")
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_allclose(same, affine, atol=1e-5)


def test_a_corrupt_file_is_named_as_such(tmp_path):
    make_decathlon(tmp_path, cases=1)
    path = tmp_path / "imagesTr/case_00.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(path)
    shutil.rmtree(tmp_path / "imagesTr")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(path)


def test_nrrd_and_mha_are_listed_checked_and_read_like_nifti(images, dataset):
    itk = pytest.importorskip("itk")
    folder = images("a_0000.nii.gz", "a_0001.nii.gz")
    nifti = inference_cases("nowhere", folder, 2)[0]
    expected, affine = read_image(nifti["image"])
    for ending in (".mha", ".nrrd"):
        other = folder.parent / ending[1:]
        other.mkdir()
        for file in nifti["image"]:
            itk.imwrite(itk.imread(file), str(other / Path(file).name.replace(".nii.gz", ending)))
        cases = inference_cases("nowhere", other, 2)
        check_cases(cases, 2)
        image, same = read_image(cases[0]["image"])
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_allclose(same, affine, atol=1e-5)
        with pytest.raises(ValueError, match=r"has 2 channel files, expected 3 \(in_channels\)"):
            check_cases(cases, 3)


def test_a_format_whose_package_is_missing_says_which(tmp_path):
    if importlib.util.find_spec("itk"):
        pytest.skip("the package is installed")
    (tmp_path / "a.mha").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.mha: reading .mha files needs a package: pip install itk"):
        check_cases(inference_cases("nowhere", tmp_path), 1)


def test_files_per_channel_and_errors(example_files, tmp_path):
    image, affine = read_image(example_files["image"])
    paths = [tmp_path / f"case_000{channel}.nii" for channel in range(2)]
    for channel, path in zip(image, paths):
        nibabel.save(nibabel.Nifti1Image(channel, affine), path)
    np.testing.assert_array_equal(read_image(paths)[0], image)
    assert read_grid(paths)[0] == read_grid(example_files["image"])[0] == (2, 14, 22, 17)

    moved = affine.copy()
    moved[0, 3] += 1
    nibabel.save(nibabel.Nifti1Image(image[1], moved), paths[1])
    with pytest.raises(ValueError, match="case_0001.nii: differs from .*case_0000.nii by 1 mm"):
        read_image(paths)
    nibabel.save(nibabel.Nifti1Image(image[1, 1:], affine), paths[1])
    with pytest.raises(ValueError, match=r"case_0001.nii: has \(13, 22, 17\) voxels"):
        read_image(paths)
    paths[1].write_bytes(b"no image")
    with pytest.raises(ValueError, match="case_0001.nii: cannot be read"):
        read_image(paths)
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), 0.5, np.float32), affine), paths[1])
    with pytest.raises(ValueError, match="case_0001.nii: 8 label values are not integers, the first is 0.5"):
        read_label(paths[1])
    with pytest.raises(ValueError, match="an affine is needed"):
        write_segmentation(np.zeros((2, 2, 2), int), paths[1], like="image.nrrd")


def test_labels_stored_as_floating_point_are_read(tmp_path):
    labels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "label.nii")
    read, _ = read_label(tmp_path / "label.nii")
    assert read.dtype == np.int8
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), r"contains colors \(R, G, B\)"),
        (lambda: np.ones((4, 5, 6), np.complex64), "contains values of type complex64; expected real numbers"),
        (lambda: np.ones((4, 5, 6, 2, 2), np.float32), r"must be a 3D volume, or 4D with the channels last, got shape"),
        (lambda: np.ones((4, 5), np.float32), "must be a 3D volume"),
    ],
    ids=["rgb", "complex", "5d", "2d"],
)
def test_what_is_not_a_volume_of_real_numbers_is_refused(tmp_path, make, message):
    nibabel.save(nibabel.Nifti1Image(make(), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="a.nii.gz: " + message):
        read_image(tmp_path / "a.nii.gz")


def test_a_vector_image_has_its_channels_on_the_fifth_axis(tmp_path):
    array = np.random.RandomState(0).rand(4, 5, 6, 1, 3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii")[0], np.moveaxis(array[..., 0, :], -1, 0))
    assert read_grid(tmp_path / "a.nii")[0] == (3, 4, 5, 6)


def test_labels_that_are_integers_but_for_rounding_are_rounded(tmp_path):
    labels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    scaled = nibabel.Nifti1Image(labels, np.eye(4))
    scaled.set_data_dtype(np.int16)  # nibabel chooses a scale factor
    nibabel.save(scaled, tmp_path / "scaled.nii")
    assert not np.array_equal(nibabel.load(tmp_path / "scaled.nii").get_fdata(), labels)
    nibabel.save(nibabel.Nifti1Image(labels * np.float32(0.9999), np.eye(4)), tmp_path / "nearly.nii")
    for name in ("scaled.nii", "nearly.nii"):
        np.testing.assert_array_equal(read_label(tmp_path / name)[0], labels)


def test_a_segmentation_is_written_whole_or_not_at_all(example_files, tmp_path, monkeypatch):
    target = tmp_path / "out" / "case.nii.gz"
    write_segmentation(np.ones((14, 22, 17), int), target, like=example_files["image"])
    assert [file.name for file in target.parent.iterdir()] == ["case.nii.gz"]
    before = target.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_segmentation(np.zeros((14, 22, 17), int), target, like=example_files["image"])
    assert [file.name for file in target.parent.iterdir()] == ["case.nii.gz"] and target.read_bytes() == before


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_the_unit_of_length_in_the_header_counts(tmp_path, unit, scale):
    image, segmentation = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    affine = np.diag([0.8, 1.2, 3.0, 1])
    affine[:3, 3] = -20, 30, 7
    file = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1 / scale] * 3 + [1]) @ affine)
    file.header.set_xyzt_units(unit)
    nibabel.save(file, image)
    for found in (read_image(image)[1], read_grid(image)[1]):
        np.testing.assert_allclose(found, affine, rtol=1e-6)
    write_segmentation(np.ones((4, 5, 6), np.uint8), segmentation, like=image)
    np.testing.assert_array_equal(nibabel.load(segmentation).affine, nibabel.load(image).affine)
    np.testing.assert_allclose(read_label(segmentation)[1], affine, rtol=1e-6)


def test_the_type_follows_the_classes_and_large_ones_do_not_wrap(tmp_path):
    many = np.array([0, 43, 299], np.int16).reshape(3, 1, 1)
    few = many.clip(0, 9)
    for values, dtype in ((many, np.int16), (few, np.int16), (few.astype(np.uint8), np.uint8)):
        write_segmentation(values, tmp_path / "a.nii.gz", affine=np.eye(4))
        saved = nibabel.load(tmp_path / "a.nii.gz")
        assert saved.get_data_dtype() == dtype and saved.shape == (3, 1, 1)
        np.testing.assert_array_equal(np.asanyarray(saved.dataobj), values)


def test_without_a_nifti_image_both_forms_of_the_affine_are_written(tmp_path):
    write_segmentation(np.ones((4, 5, 6), np.uint8), tmp_path / "a.nii.gz", like="image.mha", affine=rotated_affine())
    saved = nibabel.load(tmp_path / "a.nii.gz")
    for affine, code in (saved.get_sform(coded=True), saved.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(affine, rotated_affine(), atol=1e-4)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("large", [True, False])
def test_memory_is_taken_only_for_voxels_that_the_file_has(tmp_path, monkeypatch, ending, large):
    """nibabel fills as much as the header states with zeros before it reads."""
    path = tmp_path / f"a{ending}"
    values = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    np.testing.assert_array_equal(read_image(path)[0][0], values)
    content = bytearray(path.read_bytes() if ending == ".nii" else gzip.decompress(path.read_bytes()))
    content[42:44] = (32000 if large else 9).to_bytes(2, "little")  # voxels along the first axis
    content[44:46] = (32000 if large else 9).to_bytes(2, "little")
    path.write_bytes(content if ending == ".nii" else gzip.compress(content))
    monkeypatch.setattr(io, "LARGE", 0)
    monkeypatch.setattr(io, "USUAL_COMPRESSION", 0)
    monkeypatch.setattr(nibabel.arrayproxy, "array_from_file", None)
    for read in (read_image, read_label):
        with pytest.raises(ValueError, match=f"a{ending}: .* header states .* voxels, .* truncated or damaged"):
            read(path)
    assert read_grid(path)[0][1] == (32000 if large else 9)
