"""The three layouts give the same cases; what is not supported says so."""

from __future__ import annotations

import importlib.util
import os
import shutil

import numpy as np
import pytest
from helpers.datasets import describe, make_case, make_decathlon, make_nnunet, save

from mednext_monai.data.dataset import DatasetError, read_dataset, strip_ending
from mednext_monai.data.reading import read_image


def names(paths: list[str]) -> list[str]:
    return [path.rsplit("/", 1)[1] for path in paths]


def test_decathlon_has_one_file_with_all_channels(tmp_path):
    dataset = read_dataset(make_decathlon(tmp_path / "Task", cases=3, channels=("T1", "T2")))
    assert (dataset.layout, dataset.name) == ("decathlon", "Synthetic")
    assert dataset.channel_names == ["T1", "T2"]
    assert dataset.labels == ["background", "one", "two"]
    assert [case["id"] for case in dataset.cases] == ["case_00", "case_01", "case_02"]
    assert names(dataset.cases[1]["image"]) == ["case_01.nii.gz"]
    assert dataset.cases[1]["label"] == str(tmp_path / "Task" / "labelsTr" / "case_01.nii.gz")


@pytest.mark.parametrize("version, ending", [(1, ".nii.gz"), (1, ".nii"), (2, ".nii.gz"), (2, ".nii")])
def test_nnunet_has_one_file_per_channel(tmp_path, version, ending):
    dataset = read_dataset(make_nnunet(tmp_path, version, cases=3, ending=ending))
    assert dataset.layout == f"nnunet_v{version}"
    assert dataset.channel_names == ["T1", "T2"]
    assert dataset.labels == ["background", "one", "two"]
    assert [case["id"] for case in dataset.cases] == ["case_00", "case_01", "case_02"]
    assert names(dataset.cases[2]["image"]) == [f"case_02_0000{ending}", f"case_02_0001{ending}"]
    assert names([dataset.cases[2]["label"]]) == [f"case_02{ending}"]


def test_nnunet_v2_lists_a_case_of_which_files_are_missing(tmp_path):
    make_nnunet(tmp_path, 2, cases=3)
    (tmp_path / "imagesTr/case_01_0000.nii.gz").unlink()
    (tmp_path / "labelsTr/case_02.nii.gz").unlink()
    (tmp_path / "imagesTr/._case_02_0000.nii.gz").write_bytes(b"of macOS")
    assert [case["id"] for case in read_dataset(tmp_path).cases] == ["case_00", "case_01", "case_02"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, r"region-based labels are not supported.*whole"),
        ({"labels": {"background": 0, "one": 1, "ignore": 2}}, "'ignore' of nnU-Net v2 is not supported"),
        ({"labels": {"background": 0, "one": 1, "two": 4}}, "numbered without gaps"),
        ({"labels": {"background": 0}}, "at least one class"),
        ({"labels": {"background": 0, "one": "first"}}, "no integer value"),
        ({"channel_names": {"1": "T1"}}, "numbered from 0"),
        ({"file_ending": "nii"}, "'file_ending' must be like"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    make_nnunet(tmp_path, 2, cases=1)
    describe(tmp_path, **changes)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)


def test_an_unusable_description_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no such directory"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="no dataset.json"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "x"}')
    with pytest.raises(DatasetError, match="either 'modality'.*or 'channel_names'"):
        read_dataset(tmp_path)


def test_an_empty_list_and_an_id_twice_are_named(tmp_path):
    make_decathlon(tmp_path, cases=2)
    entry = {"image": "imagesTr/case_00.nii.gz", "label": "labelsTr/case_00.nii.gz"}
    describe(tmp_path, training=[entry, entry])
    with pytest.raises(DatasetError, match="case_00: this case id comes 2 times"):
        read_dataset(tmp_path)
    describe(tmp_path, training=[])
    with pytest.raises(DatasetError, match="no training case"):
        read_dataset(tmp_path)
    describe(tmp_path, training=["imagesTr/case_00.nii.gz"])
    with pytest.raises(DatasetError, match="must be {'image': path, 'label': path}"):
        read_dataset(tmp_path)


def test_a_file_ending_that_no_file_has_is_named(tmp_path):
    make_nnunet(tmp_path, 2, cases=2)
    describe(tmp_path, file_ending=".nii")
    with pytest.raises(DatasetError, match="imagesTr/ has no file like case_0000.nii, with the file_ending"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_a_channel_that_is_not_declared_are_named(tmp_path, version):
    make_nnunet(tmp_path, version, cases=2)
    save(tmp_path / "imagesTr/case_01_0002.nii.gz", make_case(1)[0][..., 0])
    with pytest.raises(DatasetError) as error:
        read_dataset(tmp_path)
    image = f"imagesTr{os.sep}case_01_0002.nii.gz"
    assert error.value.problems == [
        f"{image}: dataset.json has the channels 0000, 0001 only; add it or remove its files"
    ]


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
