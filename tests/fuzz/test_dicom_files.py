"""Damaged DICOM files: a sentence that names a file or the folder, or an image of the size that the files state."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("pydicom")

import pydicom
from helpers.dicom import volume, write_enhanced, write_series
from helpers.fuzz import bounded, damaged_bytes, only_ours
from hypothesis import given
from hypothesis import strategies as st

from mednext_monai.data import inference_cases, read_image
from mednext_monai.data.checks import Expected, check_case
from mednext_monai.data.dicom_seg import check_reference, is_our_seg
from mednext_monai.data.io import read_grid

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # pydicom warns about invalid values
NAMES = (
    *("Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "FrameOfReferenceUID", "PixelRepresentation"),
    *("SamplesPerPixel", "PixelData", "PatientID", "StudyDate"),
)
VALUES = st.text("0123456789.-+\\eEnaif \0", max_size=20).map(str.encode) | st.binary(max_size=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_series(folder / "series", volume(4))
    write_enhanced(folder / "enhanced" / "frames.dcm", volume(4))
    return folder


@st.composite
def damaged_dicom(draw: st.DrawFn, file: Path) -> bytes:
    """A file with other bytes in the value of an attribute, or with damage anywhere."""
    content = file.read_bytes()
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(content, draw(st.sampled_from([None, 1500]))))
    with pydicom.dcmread(file) as image:
        elements = [image.get_item(name) for name in NAMES if name in image]
        elements += [one.get_item(next(iter(one.keys()))) for one in _items(image)]
    for element in draw(st.lists(st.sampled_from(elements), min_size=1, max_size=3)):
        start = element.value_tell if hasattr(element, "value_tell") else element.file_tell
        size = element.length if hasattr(element, "length") else len(str(element.value))
        value = draw(VALUES).ljust(size, b" ")[:size]
        content = content[:start] + value + content[start + size :]
    return content


def _items(image):
    """Yield the innermost items of the functional groups."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in image.get(name, []):
            for element in group:
                yield element.value[0]


@pytest.mark.parametrize("kind", ["series", "enhanced"])
@bounded(900)
@given(data=st.data())
def test_series(tmp_path_factory, whole, kind, data):
    folder = tmp_path_factory.getbasetemp() / kind
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / kind, folder)
    files = sorted(folder.iterdir())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        file.write_bytes(data.draw(damaged_dicom(file)))
        assert not is_our_seg(file)
    with only_ours(str(folder)):
        cases = inference_cases("nowhere", str(folder))
        assert cases and all(case["id"] == Path(case["id"]).name for case in cases)
        for case in cases:
            check_case(case, Expected(1))
            with only_ours(str(folder)):
                (_, *shape), affine = read_grid(case["image"])
                image, same = read_image(case["image"])
                assert image.shape == (1, *shape) and np.array_equal(affine, same) and np.isfinite(affine).all()


@bounded(150)
@given(data=st.data())
def test_series_to_which_a_segmentation_refers(tmp_path_factory, whole, data):
    """highdicom reads far more of a header than the image needs."""
    pytest.importorskip("highdicom")
    folder = tmp_path_factory.getbasetemp() / "referred"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "series", folder)
    for file in sorted(folder.iterdir()):
        file.write_bytes(data.draw(damaged_dicom(file)))
    with only_ours(str(folder), "dicom_seg"):
        for case in inference_cases("nowhere", str(folder)):
            check_reference(case["image"])
