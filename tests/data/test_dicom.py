"""A series has the values and positions that its files state; a series that is no volume is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    normal_of,
    volume,
    write_enhanced,
    write_series,
)

from mednext_monai.data import check_cases, inference_cases, read_image
from mednext_monai.data.dicom import DicomSeries, import_package
from mednext_monai.data.io import read_grid

pydicom = pytest.importorskip("pydicom")
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE}


def only(folder: Path) -> DicomSeries:
    (case,) = inference_cases("nowhere", folder)
    return case["image"]


def independent(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Values ``(C, X, Y, Z)`` and affine, RAS, by highdicom."""
    highdicom = pytest.importorskip("highdicom")
    found = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in files])
    found = found.flip_spatial(0) if np.linalg.det(found.affine) > 0 else found  # its slices run against the normal
    axes = [2, 1, 0]  # highdicom: slices, rows, columns
    return found.array.transpose(axes)[None], TO_RAS @ found.affine[:, [*axes, 3]]


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_values_and_affine_are_those_of_the_files_and_of_highdicom(tmp_path, orientation):
    files = write_series(tmp_path / "a", orientation=orientation)
    image, affine = read_image(only(tmp_path / "a"))
    assert image.dtype == np.float32 and image.shape == (1, 4, 5, 6)
    np.testing.assert_array_equal(image[0], 2.0 * volume().transpose() - 1000)
    for voxel in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (3, 4, 5)):
        column, row, place = voxel
        header = pydicom.dcmread(files[place], stop_before_pixels=True)
        expected = np.array(header.ImagePositionPatient, float)
        expected += column * 0.5 * np.array(orientation[:3]) + row * 0.75 * np.array(orientation[3:])
        np.testing.assert_allclose((TO_RAS @ affine @ [*voxel, 1])[:3], expected, atol=1e-6)
    other_image, other_affine = independent(files)
    np.testing.assert_array_equal(image, other_image)
    np.testing.assert_allclose(affine, other_affine, atol=1e-6)
    shape, of_grid = read_grid(only(tmp_path / "a"))
    assert shape == image.shape
    np.testing.assert_array_equal(of_grid, affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_itk_reads_the_same_image(tmp_path, orientation):
    itk = pytest.importorskip("itk", reason="itk is not installed")
    write_series(tmp_path / "a", orientation=orientation)
    names = itk.GDCMSeriesFileNames.New()
    names.SetDirectory(str(tmp_path / "a"))
    read = itk.imread(list(names.GetInputFileNames()), itk.F)
    image, affine = read_image(only(tmp_path / "a"))
    np.testing.assert_array_equal(image[0], itk.array_from_image(read).transpose())
    direction = itk.array_from_matrix(read.GetDirection()) * np.array(read.GetSpacing())
    np.testing.assert_allclose((TO_RAS @ affine)[:3, :3], direction, atol=1e-5)
    np.testing.assert_allclose((TO_RAS @ affine)[:3, 3], read.GetOrigin(), atol=1e-5)


def test_slices_are_sorted_by_position_not_by_name_or_instance_number(tmp_path):
    order = [3, 0, 5, 1, 4, 2]

    def shuffle(i, image):
        image.InstanceNumber = 6 - i
        image.ImagePositionPatient = [0, 0, 2.5 * order[i]]

    write_series(tmp_path / "a", change=shuffle)
    image, affine = read_image(only(tmp_path / "a"))
    np.testing.assert_array_equal(image[0], 2.0 * volume()[np.argsort(order)].transpose() - 1000)
    assert affine[2, 2] == 2.5


def test_each_slice_has_its_own_rescaling_as_in_pet(tmp_path):
    def rescale(i, image):
        image.Modality, image.RescaleSlope, image.RescaleIntercept = "PT", f"{0.1 * (i + 1):g}", i

    files = write_series(tmp_path / "a", change=rescale)
    image, _ = read_image(only(tmp_path / "a"))
    slopes = 0.1 * np.arange(1, 7)[:, None, None]
    np.testing.assert_allclose(image[0], (slopes * volume() + np.arange(6)[:, None, None]).transpose(), rtol=1e-6)
    np.testing.assert_allclose(image, independent(files)[0], rtol=1e-6)


def test_a_modality_lookup_table_replaces_the_rescaling(tmp_path):
    def table(i, image):
        del image.RescaleSlope, image.RescaleIntercept
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", [120, 0, 16])
        item.add_new("LUTData", "US", [3 * value + 1 for value in range(120)])
        image.ModalityLUTSequence = [item]

    write_series(tmp_path / "a", change=table)
    image, _ = read_image(only(tmp_path / "a"))
    np.testing.assert_array_equal(image[0], 3.0 * volume().transpose() + 1)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_multi_frame_file_has_positions_and_rescaling_per_frame(tmp_path, orientation):
    order = [2, 0, 1, 5, 4, 3]
    file = write_enhanced(tmp_path / "enhanced.dcm", orientation=orientation, order=order)
    for given in (file, tmp_path):
        image, affine = read_image(only(given))
        slopes = np.arange(1, 7)[:, None, None]
        np.testing.assert_array_equal(image[0], (slopes * volume() - 5).transpose())
        np.testing.assert_allclose((TO_RAS @ affine)[:3, 2], 2 * normal_of(orientation), atol=1e-6)
    assert inference_cases("nowhere", file)[0]["id"] == "enhanced"


def test_a_series_travels_to_other_processes_and_through_json(tmp_path):
    write_enhanced(tmp_path / "a" / "one")
    series = only(tmp_path / "a")
    for copy in (pickle.loads(pickle.dumps(series)), DicomSeries.from_json(series.to_json())):
        assert copy == series
        np.testing.assert_array_equal(read_image(copy)[0], read_image(series)[0])


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_pixels_are_decoded(tmp_path, syntax):
    if syntax == "JPEGLSLossless":
        pytest.importorskip("jpeg_ls")
    uid = getattr(pydicom.uid, syntax)
    write_series(tmp_path / "a", change=lambda i, image: image.compress(uid))
    image, _ = read_image(only(tmp_path / "a"))
    np.testing.assert_array_equal(image[0], 2.0 * volume().transpose() - 1000)


def refused(folder: Path) -> str:
    """The message with which the checks before a run refuse what is in a folder."""
    with pytest.raises(ValueError) as error:
        check_cases(inference_cases("nowhere", folder), 1)
    return str(error.value)


def test_pixels_without_a_decoder_are_refused(tmp_path):
    def damage(i, image):
        image.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
        image.PixelData = pydicom.encaps.encapsulate([b"\0" * 20])
        image["PixelData"].VR = "OB"

    files = write_series(tmp_path / "a", change=damage)
    message = refused(tmp_path / "a")
    assert f"series 1 'CT Thorax': the pixels of {files[0]} cannot be decoded" in message


def test_missing_slices_are_refused(tmp_path):
    files = write_series(tmp_path / "a")
    files[3].unlink()
    message = refused(tmp_path / "a")
    assert f"{tmp_path / 'a'}: series 1 'CT Thorax'" in message
    assert f"{files[2]} and {files[4]} are 5.000 mm apart, the usual distance of its 5 slices is 2.500 mm" in message


def test_spacing_that_drifts_is_refused(tmp_path):
    def drift(i, image):
        image.ImagePositionPatient = [0, 0, f"{i + 0.002 * i * i:.4f}"]

    files = write_series(tmp_path / "a", volume(30), change=drift)
    assert f"{files[14]} is 0.420 mm from its place on the line" in refused(tmp_path / "a")


def test_rounded_positions_are_no_gap(tmp_path):
    def rounded(i, image):
        image.ImagePositionPatient = [0, 0, f"{0.625 * i:.2f}"]

    write_series(tmp_path / "a", volume(30), spacing=(0.5, 0.5), change=rounded)
    affine = read_image(only(tmp_path / "a"))[1]
    np.testing.assert_allclose(affine[2, 2], 0.625, atol=2e-4)


def test_a_slice_that_is_there_twice_is_refused(tmp_path):
    files = write_series(tmp_path / "a")
    copy = files[2].with_name("copy")
    copy.write_bytes(files[2].read_bytes())
    message = refused(tmp_path / "a")
    assert f"{files[2]} and {copy} are both at 40.000 mm along the normal" in message
    assert "1 of 7 slices repeat a position. Keep one of each." in message


@pytest.mark.parametrize(
    ("mark", "values"),
    [("EchoNumbers", ("1", "2")), ("TemporalPositionIdentifier", ("1", "2")), ("ImageType", ("M", "P"))],
)
def test_several_volumes_in_one_series_are_refused_with_what_tells_them_apart(tmp_path, mark, values):
    for value in values:
        stated = ["ORIGINAL", "PRIMARY", value] if mark == "ImageType" else value
        write_series(
            tmp_path / "a", uid="1.2.9", prefix=value, change=lambda i, image, v=stated: setattr(image, mark, v)
        )
    message = refused(tmp_path / "a")
    listed = ", ".join("ORIGINAL\\PRIMARY\\" + value for value in values) if mark == "ImageType" else "1, 2"
    assert "6 of 12 slices repeat a position. It holds several volumes, which differ in" in message
    assert f"differ in {mark} ({listed}): export each as a series of its own" in message


def test_several_volumes_in_one_multi_frame_file_are_refused(tmp_path):
    def echoes(image):
        for i, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
            frame.MREchoSequence = [pydicom.Dataset()]
            frame.MREchoSequence[0].EffectiveEchoTime = 10.0 + 5 * (i % 2)

    write_enhanced(tmp_path / "a" / "one", order=[0, 0, 1, 1, 2, 2], change=echoes)
    assert "differ in EffectiveEchoTime (10.0, 15.0)" in refused(tmp_path / "a")


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_tilted_gantry_is_refused(tmp_path, orientation):
    def tilt(i, image):
        shift = 2.5 * np.tan(np.radians(5)) * i * np.array(orientation[3:])
        image.ImagePositionPatient = [f"{p:.8f}"[:16] for p in np.array(image.ImagePositionPatient, float) + shift]

    write_series(tmp_path / "a", orientation=orientation, change=tilt)
    message = refused(tmp_path / "a")
    assert "shifted by 0.219 mm within its plane per 2.500 mm, 5.00 degrees" in message
    assert "the gantry was tilted" in message and str(tmp_path / "a" / "IM0000") in message


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_slice_without_position_or_spacing_is_refused(tmp_path, name):
    files = write_series(tmp_path / "a", change=lambda i, image: delattr(image, name) if i == 2 else None)
    assert f"{files[2]} has no valid {name}." in refused(tmp_path / "a")


def test_slices_with_different_pixel_spacing_or_frame_of_reference_are_refused(tmp_path):
    for name, value, found in (
        ("PixelSpacing", [1, 1], "is (0.75, 0.5), that of"),
        ("FrameOfReferenceUID", "1.9", "have different frames of reference"),
    ):
        write_series(tmp_path / name, change=lambda i, image: setattr(image, name, value) if i == 4 else None)  # noqa: B023
        message = refused(tmp_path / name)
        assert found in message and "IM0004" in message


def test_directions_that_are_not_perpendicular_are_refused(tmp_path):
    write_series(tmp_path / "a", orientation=(1, 0, 0, 0.5, 1, 0))
    assert "is not two perpendicular unit vectors" in refused(tmp_path / "a")


def test_color_is_refused(tmp_path):
    def color(i, image):
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
        image.PixelData = np.zeros((5, 4, 3), np.int16).tobytes()

    files = write_series(tmp_path / "a", change=color)
    assert f"{files[0]} is in color (RGB)" in refused(tmp_path / "a")


def test_frames_without_functional_groups_are_refused(tmp_path):
    def plain(image):
        del image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence

    write_enhanced(tmp_path / "a" / "one", change=plain)
    assert "one has no valid ImagePositionPatient" in refused(tmp_path / "a")


def test_a_file_that_was_replaced_after_the_checks_is_refused(tmp_path):
    files = write_series(tmp_path / "a")
    series = only(tmp_path / "a")
    write_series(tmp_path / "b", volume(6, 7, 8))[1].replace(files[1])
    with pytest.raises(ValueError, match="IM0001 has changed"):
        read_image(series)


def test_without_pydicom_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "a")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ValueError, match=r'pip install "mednext-monai\[dicom\]"'):
        import_package("pydicom")
    with pytest.raises(ValueError, match=r'pip install "mednext-monai\[dicom\]"'):
        inference_cases("nowhere", tmp_path / "a")


def test_memory_is_taken_only_for_pixels_that_a_file_has(tmp_path, monkeypatch):
    def change(i, image):
        image.Rows = image.Columns = 65535

    write_series(tmp_path / "a", change=change)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match="the pixels of .*IM0000 cannot be decoded"):
        read_image(only(tmp_path / "a"))
