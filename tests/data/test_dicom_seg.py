"""A DICOM-SEG has the voxels of the class map on the frames of its series, and says what the classes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import save
from helpers.dicom import AXIAL, CORONAL, OBLIQUE, SAGITTAL, volume, write_enhanced, write_series

from mednext_monai.data import check_dicom_seg, inference_cases
from mednext_monai.data.dicom import DicomSeries
from mednext_monai.data.dicom_seg import is_our_seg, write_dicom_seg
from mednext_monai.data.segments import make_segments

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
NAMES = ["background", "liver", "kidney", "Hüfte 臀部", "tumor"]


def only(folder: Path) -> DicomSeries:
    return inference_cases("nowhere", folder)[0]["image"]


def class_map() -> np.ndarray:
    """Classes 0, 1, 3 and 4 in ``(X, Y, Z)`` without symmetry; class 2 has no voxel, and the first slice is empty."""
    labels = np.random.default_rng(0).choice(np.array([0, 1, 3, 4], np.uint8), size=(4, 5, 6))
    labels[..., 0] = 0
    return labels


def read_back(file: Path, series: DicomSeries, values: list[int]) -> np.ndarray:
    """The class map ``(X, Y, Z)`` that a DICOM-SEG has on the images of a series, read by highdicom."""
    found = highdicom.seg.segread(file)
    uids = [pydicom.dcmread(one, stop_before_pixels=True).SOPInstanceUID for one in series.files]
    if len(uids) > 1:
        planes = found.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=False)
    else:
        frames = [one.frame + 1 for one in series.slices]
        planes = found.get_pixels_by_source_frame(uids[0], frames, combine_segments=True)
    return np.array([0, *values])[planes].transpose()


@pytest.mark.parametrize(
    "orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"]
)
def test_it_has_the_classes_on_the_images_of_the_series_at_their_positions(tmp_path, orientation):
    files = write_series(
        tmp_path / "a", orientation=orientation, change=lambda i, d: setattr(d, "InstanceNumber", 9 - i)
    )
    series, labels = only(tmp_path / "a"), class_map()
    assert write_dicom_seg(labels, series, tmp_path / "a.seg.dcm", make_segments(NAMES))
    np.testing.assert_array_equal(read_back(tmp_path / "a.seg.dcm", series, [1, 3, 4]), labels)
    sources = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in files}
    segmentation = pydicom.dcmread(tmp_path / "a.seg.dcm")
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        source = sources[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert group.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    assert segmentation.FrameOfReferenceUID == "1.2.3.5" and segmentation.StudyInstanceUID == "1.2.3.4"


def test_its_volume_is_that_of_the_series(tmp_path):
    write_series(tmp_path / "a", orientation=OBLIQUE)
    series, labels = only(tmp_path / "a"), class_map()
    write_dicom_seg(labels, series, tmp_path / "a.seg.dcm", make_segments(NAMES))
    found = highdicom.seg.segread(tmp_path / "a.seg.dcm").get_volume(combine_segments=True)
    affine = np.diag([-1, -1, 1, 1]) @ series.grid()[1]  # LPS
    for index in np.argwhere(found.array):
        place, row, column = np.rint(np.linalg.solve(affine, found.affine @ [*index, 1])[:3]).astype(int)[::-1]
        assert [0, 1, 3, 4][found.array[tuple(index)]] == labels[column, row, place]
    assert np.count_nonzero(found.array) == np.count_nonzero(labels)


def test_it_refers_to_the_frames_of_a_multi_frame_file(tmp_path):
    write_enhanced(tmp_path / "a" / "one", order=[2, 0, 1, 5, 4, 3])
    series, labels = only(tmp_path / "a"), class_map()
    check_dicom_seg([{"id": "a", "image": series}], str(tmp_path))
    assert write_dicom_seg(labels, series, tmp_path / "a.seg.dcm", make_segments(NAMES))
    np.testing.assert_array_equal(read_back(tmp_path / "a.seg.dcm", series, [1, 3, 4]), labels)


def test_it_describes_classes_algorithm_and_patient(tmp_path):
    write_series(tmp_path / "a", number=7)
    codes = {"1": {"type": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}}}
    segments = make_segments(NAMES, codes)
    write_dicom_seg(class_map(), only(tmp_path / "a"), tmp_path / "a.seg.dcm", segments, ("liver model", "1.2.3"))
    found = pydicom.dcmread(tmp_path / "a.seg.dcm")
    assert [(one.SegmentNumber, one.SegmentLabel) for one in found.SegmentSequence] == [
        (1, "liver"),
        (2, "Hüfte 臀部"),
        (3, "tumor"),
    ]
    liver, hip, _ = found.SegmentSequence
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert hip.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Organ"
    assert liver.SegmentAlgorithmType == "AUTOMATIC" and liver.SegmentAlgorithmName == "liver model"
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("liver model", "1.2.3")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (found.SegmentationType, found.Modality, found.Manufacturer) == ("BINARY", "SEG", "mednext-monai")
    assert (str(found.PatientName), found.PatientID, found.SeriesNumber) == ("Müller^Test", "P1", 1007)


def test_class_numbers_above_255_and_classes_without_a_name(tmp_path):
    write_series(tmp_path / "a")
    labels = np.zeros((4, 5, 6), np.int16)
    labels[0, 0, 1], labels[1, 0, 1] = 299, 300
    names = ["background", *(f"c{i}" for i in range(1, 300)), " "]
    write_dicom_seg(labels, only(tmp_path / "a"), tmp_path / "a.seg.dcm", make_segments(names))
    found = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["c299"]
    assert found.pixel_array.sum() == 1


def test_without_a_voxel_nothing_is_written(tmp_path):
    write_series(tmp_path / "a")
    empty = np.zeros((4, 5, 6), np.uint8)
    assert not write_dicom_seg(empty, only(tmp_path / "a"), tmp_path / "a.seg.dcm", make_segments(NAMES))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write_series(tmp_path / "a")
    (tmp_path / "a.seg.dcm").write_text("older")

    def fail(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("disk")

    monkeypatch.setattr(pydicom.Dataset, "save_as", fail)
    with pytest.raises(OSError, match="disk"):
        write_dicom_seg(class_map(), only(tmp_path / "a"), tmp_path / "a.seg.dcm", make_segments(NAMES))
    assert (tmp_path / "a.seg.dcm").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.seg.dcm"]


def test_labels_of_another_shape_are_refused(tmp_path):
    write_series(tmp_path / "a")
    with pytest.raises(ValueError, match=r"labels have \(5, 4, 6\) voxels, but .* has \(4, 5, 6\)"):
        write_dicom_seg(np.ones((5, 4, 6), int), only(tmp_path / "a"), tmp_path / "s", make_segments(NAMES))


def test_a_series_without_patient_or_thickness_is_enough(tmp_path):
    def anonymous(i, image):
        for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyDate"):
            delattr(image, name)
        image.PatientSex, image.SpecificCharacterSet = "UNKNOWN", "ISO_IR 192"

    write_series(tmp_path / "a", change=anonymous)
    series = only(tmp_path / "a")
    check_dicom_seg([{"id": "a", "image": series}], str(tmp_path))
    write_dicom_seg(class_map(), series, tmp_path / "a.seg.dcm", make_segments(NAMES))
    np.testing.assert_array_equal(read_back(tmp_path / "a.seg.dcm", series, [1, 3, 4]), class_map())


def test_what_cannot_be_written_is_refused_before_the_first_case(tmp_path):
    save(tmp_path / "nifti" / "n.nii.gz", np.ones((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="dicom_seg: .*n.nii.gz is not DICOM"):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "nifti"), str(tmp_path))
    write_series(tmp_path / "f", change=lambda i, image: delattr(image, "FrameOfReferenceUID"))
    with pytest.raises(ValueError, match="has no FrameOfReferenceUID in .*IM0000"):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "f"), str(tmp_path))
    write_series(tmp_path / "s", change=lambda i, image: delattr(image, "StudyInstanceUID"))
    with pytest.raises(ValueError, match="series 1 'CT Thorax': no DICOM-SEG can refer to it: .*StudyInstanceUID"):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "s"), str(tmp_path))
    for i in range(2):
        write_enhanced(tmp_path / "e" / str(i), change=lambda image, i=i: moved(image, i))
    with pytest.raises(ValueError, match="has several multi-frame files"):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "e"), str(tmp_path))


def moved(image, i: int) -> None:
    """Make a multi-frame file part ``i`` of one series."""
    image.SeriesInstanceUID = "1.2.9"
    for frame in image.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 12 * i


def test_files_of_others_and_inputs_are_not_replaced(tmp_path):
    files = write_series(tmp_path / "a", volume(3))
    cases = inference_cases("nowhere", tmp_path / "a")
    (tmp_path / "a.seg.dcm").write_bytes(files[0].read_bytes())
    with pytest.raises(ValueError, match="a.seg.dcm exists and was not written by this package"):
        check_dicom_seg(cases, str(tmp_path))
    check_dicom_seg(cases, str(tmp_path), overwrite=True)
    labels = np.ones((4, 5, 3), np.uint8)
    write_dicom_seg(labels, cases[0]["image"], tmp_path / "a.seg.dcm", make_segments(NAMES))
    assert is_our_seg(tmp_path / "a.seg.dcm") and not is_our_seg(files[0]) and not is_our_seg(__file__)
    check_dicom_seg(cases, str(tmp_path))
    files[0].rename(tmp_path / "a" / "a.seg.dcm")
    with pytest.raises(ValueError, match="a.seg.dcm is an input and would be replaced"):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "a"), str(tmp_path / "a"), overwrite=True)


def test_without_highdicom_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "a")
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(ValueError, match=r'highdicom, which is not installed: pip install "mednext-monai\[dicom\]"'):
        check_dicom_seg(inference_cases("nowhere", tmp_path / "a"), str(tmp_path))
