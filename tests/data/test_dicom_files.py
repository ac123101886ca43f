"""In a folder as hospitals export it, every volume is found and nothing else, and whatever is passed over is named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import save
from helpers.dicom import AXIAL, CORONAL, SAGITTAL, volume, write_enhanced, write_series

from mednext_monai.data import inference_cases
from mednext_monai.data.dicom import DicomSeries

pydicom = pytest.importorskip("pydicom")
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def found(folder: Path) -> dict[str, DicomSeries]:
    return {case["id"]: case["image"] for case in inference_cases("nowhere", folder)}


def not_an_image(file: Path, sop_class: str, modality: str) -> None:
    """Write an object without pixels."""
    image = pydicom.dcmread(write_series(file.parent / "like", volume(1))[0])
    for name in ("PixelData", "Rows", "Columns"):
        del image[name]
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    image.Modality = modality
    image.save_as(file)
    (file.parent / "like" / "IM0000").unlink()


def test_a_folder_is_one_case_with_its_name_whatever_the_files_are_called(tmp_path):
    for i, file in enumerate(write_series(tmp_path / "patient 1")):
        file.rename(file.with_name(f"1.2.840.{i}" if i % 2 else f"{i}.dcm"))
    cases = found(tmp_path / "patient 1")
    assert list(cases) == ["patient 1"]
    assert len(cases["patient 1"].files) == 6


def test_nested_folders_give_the_names_on_the_way_and_other_files_are_ignored(tmp_path):
    for path in ("p1/study/s1", "p1/study/s2", "p2"):
        write_series(tmp_path / "export" / path)
    (tmp_path / "export" / "README.txt").write_text("exported by a viewer")
    (tmp_path / "export" / "p2" / "Thumbs.db").write_bytes(b"\1\2\3")
    (tmp_path / "export" / "p2" / "report.pdf").write_bytes(b"%PDF-")
    (tmp_path / "export" / ".hidden").mkdir()
    write_series(tmp_path / "export" / ".hidden")
    assert list(found(tmp_path / "export")) == ["p1_study_s1", "p1_study_s2", "p2"]


def test_linked_folders_are_read_once(tmp_path):
    write_series(tmp_path / "far" / "a")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a").symlink_to(tmp_path / "far" / "a")
    (tmp_path / "far" / "a" / "loop").symlink_to(tmp_path / "far" / "a")
    assert list(found(tmp_path / "export")) == ["a"]


def test_a_series_in_several_folders_is_one_case(tmp_path):
    for i, file in enumerate(write_series(tmp_path / "export" / "p1")):
        (file.parent / str(i // 3)).mkdir(exist_ok=True)
        file.rename(file.parent / str(i // 3) / file.name)
    (series,) = found(tmp_path / "export").values()
    assert list(found(tmp_path / "export")) == ["p1"] and len(series.slices) == 6


def test_several_series_of_a_folder_are_told_apart_by_number_then_by_uid(tmp_path):
    for number, prefix in ((3, "a"), (4, "b")):
        write_series(tmp_path / "p", number=number, prefix=prefix)
    assert list(found(tmp_path / "p")) == ["p_3", "p_4"]
    write_series(tmp_path / "p", number=4, prefix="c", uid="1.2.77")
    assert "p_4_77" in found(tmp_path / "p") and len(found(tmp_path / "p")) == 3


def test_stacks_of_other_directions_or_sizes_in_one_series_are_cases_of_their_own(tmp_path):
    for orientation, prefix in ((AXIAL, "a"), (SAGITTAL, "b")):
        write_series(tmp_path / "p", orientation=orientation, uid="1.2.9", prefix=prefix)
    write_series(tmp_path / "p", volume(3, 8, 8), uid="1.2.9", prefix="c")
    cases = found(tmp_path / "p")
    assert list(cases) == ["p_1_9_1", "p_1_9_2", "p_1_9_3"]
    assert [len(series.slices) for series in cases.values()] == [6, 6, 3]
    for series in cases.values():
        series.read()


def test_two_cases_with_one_id_are_an_error(tmp_path):
    for path in ("a/b_c", "a_b/c"):
        write_series(tmp_path / path)
    with pytest.raises(ValueError, match="lists more than one image named a_b_c"):
        found(tmp_path)


def test_objects_that_are_no_images_are_ignored(tmp_path):
    write_series(tmp_path / "p")
    not_an_image(tmp_path / "p" / "sr", "1.2.840.10008.5.1.4.1.1.88.11", "SR")
    not_an_image(tmp_path / "p" / "rs", "1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
    not_an_image(tmp_path / "p" / "pr", "1.2.840.10008.5.1.4.1.1.11.1", "PR")
    not_an_image(tmp_path / "p" / "DICOMDIR", "1.2.840.10008.1.3.10", "")
    segmentation = "1.2.840.10008.5.1.4.1.1.66.4"
    write_enhanced(tmp_path / "p" / "seg", change=lambda image: setattr(image, "SOPClassUID", segmentation))
    (series,) = found(tmp_path / "p").values()
    assert len(series.slices) == 6


def test_localizers_single_slices_and_screen_captures_are_named_in_warnings(tmp_path, caplog):
    def capture(i, image):
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        del image.ImagePositionPatient, image.ImageOrientationPatient

    write_series(tmp_path / "p", number=2)
    uid = "1.2.9"
    write_series(tmp_path / "p", uid=uid, prefix="b", change=lambda i, image: setattr(image, "ImageType", LOCALIZER))
    write_series(tmp_path / "p", volume(1), orientation=CORONAL, number=5, prefix="c")
    write_series(tmp_path / "p", distance=0, number=6, prefix="d")
    write_series(tmp_path / "p", number=7, prefix="e", change=capture)
    with caplog.at_level(logging.WARNING):
        assert list(found(tmp_path / "p")) == ["p"]
    text = caplog.text
    for number, said in (
        (1, "is a localizer of 6 image(s)"),
        (5, "has a single slice in its plane, c0000"),
        (6, "has 6 slices at a single position"),
        (7, "has 6 image(s) without a position in the patient"),
    ):
        assert f"{tmp_path / 'p'}: series {number} 'CT Thorax' {said}; it is passed over." in text


def test_a_localizer_in_the_series_of_a_volume_is_no_slice_of_it(tmp_path):
    write_series(tmp_path / "p", uid="1.2.9")
    write_series(
        tmp_path / "p",
        volume(1),
        uid="1.2.9",
        prefix="z",
        change=lambda i, image: setattr(image, "ImageType", LOCALIZER),
    )
    (series,) = found(tmp_path / "p").values()
    assert series.read()[0].shape == (4, 5, 6)


def test_a_single_slice_alone_is_an_error_that_says_so(tmp_path):
    file = write_series(tmp_path / "p", volume(1))[0]
    for given in (file, file.parent):
        with pytest.raises(
            ValueError, match="no series of slices to segment: .*has a single slice in its plane, IM0000"
        ):
            found(given)


def test_dicom_beside_other_images_is_an_error(tmp_path):
    write_series(tmp_path / "p" / "s")
    for place in (tmp_path / "p" / "s", tmp_path / "p" / "nifti"):
        save(place / "a.nii.gz", np.ones((4, 4, 4), np.float32))
        with pytest.raises(
            ValueError, match="has DICOM files such as .*IM0000 and images in other formats such as .*a.nii"
        ):
            found(tmp_path / "p")
        (place / "a.nii.gz").unlink()
    save(tmp_path / "p" / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    assert list(found(tmp_path / "p")) == ["a"]  # as for all images, folders below are not searched


def test_a_network_of_several_channels_needs_nifti(tmp_path):
    write_series(tmp_path / "p", number=3)
    write_series(tmp_path / "p", number=4, prefix="b")
    with pytest.raises(ValueError, match="in_channels is 2: which series is which channel is not guessed. Convert"):
        inference_cases("nowhere", tmp_path / "p", 2)


@pytest.mark.parametrize("kept", [200, 600, 800])
def test_a_truncated_file_is_named_though_the_others_would_be_a_volume(tmp_path, kept):
    file = write_series(tmp_path / "p")[5]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match="IM0005: cannot be read as DICOM"):
        found(tmp_path / "p")


def test_a_number_that_is_none_is_named(tmp_path):
    files = write_series(tmp_path / "p")
    content = files[1].read_bytes()
    files[1].write_bytes(content.replace(b"-90.5", b"-9x.5"))
    with pytest.raises(ValueError, match="IM0001: cannot be read as DICOM: ValueError: could not convert"):
        found(tmp_path / "p")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("SOPClassUID", ["1.2", "1.3"], "it has no SOP class"), ("NumberOfFrames", 2**31 - 1, "cannot have 2147483647")],
)
def test_an_attribute_with_an_impossible_value_is_named(tmp_path, name, value, message):
    def change(i, image):
        if i == 1:
            setattr(image, name, value)
            if name == "SOPClassUID":
                del image.Rows

    write_series(tmp_path / "p", change=change)
    with pytest.raises(ValueError, match=f"IM0001: cannot be read as DICOM: .*{message}"):
        found(tmp_path / "p")


@pytest.mark.parametrize("number", ["", None, "1\\2"])
def test_a_series_without_a_valid_number_has_none(tmp_path, number):
    def change(i, image):
        image.SeriesNumber = number

    write_series(tmp_path / "p", change=change)
    assert found(tmp_path / "p")["p"].number is None
