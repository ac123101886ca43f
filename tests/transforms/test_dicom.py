"""A DICOM series goes through the transforms of an inference, in worker processes too, and ends in a DICOM-SEG."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.datasets import make_boxes, save
from helpers.dicom import OBLIQUE, write_series
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch

from mednext_monai.data import inference_cases, training_cases
from mednext_monai.networks import create_mednext
from mednext_monai.transforms import Preprocessd, RestoreClassesd, SaveDicomSegd, SaveImageOnSourceGridd
from mednext_monai.transforms.preprocess import CASE_ID, DICOM
from mednext_monai.weights import carry_settings, task_settings, training_settings, write_checkpoint

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")


def bright_cube() -> np.ndarray:
    """Stored values ``(slices, rows, columns)``: noise, and a brighter cuboid in one corner."""
    stored = np.random.default_rng(1).integers(1, 50, (10, 16, 20)).astype(np.int16)
    stored[1:5, 2:9, 3:15] += 400
    return stored


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_segmented_is_saved_on_the_grid_of_the_series(tmp_path, num_workers):
    files = write_series(tmp_path / "in" / "scan", bright_cube(), orientation=OBLIQUE, spacing=(1, 1), distance=1)
    cases = inference_cases("nowhere", tmp_path / "in")
    dataset = Dataset(cases, transform=Preprocessd("image", spacing=(1, 1, 1), orientation="RAS", label_key=None))
    (batch,) = DataLoader(dataset, batch_size=1, num_workers=num_workers)
    (data,) = decollate_batch(batch)
    image = data["image"]
    data["pred"] = MetaTensor(torch.stack([image[0] < 1, image[0] >= 1]).float())
    for transform in (
        RestoreClassesd("pred"),
        SaveImageOnSourceGridd("pred", tmp_path / "out"),
        SaveDicomSegd("pred", tmp_path / "out"),
    ):
        data = transform(data)
    expected = (bright_cube() > 200).transpose()
    saved = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), expected)
    np.testing.assert_allclose(saved.affine, cases[0]["image"].grid()[1], atol=1e-4)
    found = highdicom.seg.segread(tmp_path / "out" / "scan.seg.dcm")
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    planes = found.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(planes.transpose(), expected)
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["class_1"]


def predicted(tmp_path: Path, labels: np.ndarray) -> dict:
    write_series(tmp_path / "scan")
    (case,) = inference_cases("nowhere", tmp_path / "scan")
    meta = {DICOM: case["image"].to_json(), CASE_ID: case["id"]}
    return {"pred": MetaTensor(torch.from_numpy(labels[None]), meta=meta)}


def labels_of(file: Path) -> list[str]:
    return [one.SegmentLabel for one in pydicom.dcmread(file).SegmentSequence]


def test_names_are_those_of_the_training_then_of_the_metadata(tmp_path):
    boxes = make_boxes(tmp_path / "boxes")
    stated = dict.fromkeys(
        ("in_channels", "spacing", "orientation", "normalization", "intensity", "patch_size"), None
    ) | {"out_channels": 3}
    network = create_mednext("S", 3, out_channels=3, base_channels=2)
    carry_settings(network, training_settings(task_settings(stated), "S", 3, 0, training_cases(str(boxes), 0), boxes))
    write_checkpoint(network.state_dict(), tmp_path / "model.pt")
    liver = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    pred = {"channel_def": {"0": "background", "1": "liver", "2": "$'\\U00000023 2'"}}
    content = {"name": "my bundle", "version": "2.0.0", "network_data_format": {"outputs": {"pred": pred}}}
    content["network_data_format"]["outputs"]["pred"]["segment_codes"] = {
        "1": {"type": liver, "modifier": {"value": "7771000", "scheme": "SCT", "meaning": "Left"}}
    }
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    data = predicted(tmp_path, np.arange(120, dtype=np.uint8).reshape(4, 5, 6) % 3)
    file = tmp_path / "scan.seg.dcm"
    options = {"output_dir": tmp_path, "metadata": tmp_path / "metadata.json", "classes": 3}
    SaveDicomSegd("pred", checkpoint=[tmp_path / "model.pt"], **options)(data)
    assert labels_of(file) == ["outer", "inner"]
    SaveDicomSegd("pred", **options)(data)
    assert labels_of(file) == ["liver", "# 2"]
    segment = pydicom.dcmread(file).SegmentSequence[0]
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    assert kind.CodeValue == "10200004"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("my bundle", "2.0.0")
    SaveDicomSegd("pred", output_dir=tmp_path, classes=3)(data)
    assert labels_of(file) == ["class_1", "class_2"]


def test_wrong_codes_in_the_metadata_are_an_error_before_the_first_case(tmp_path):
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps({"network_data_format": {"outputs": {"pred": {"segment_codes": {"7": {}}}}}}))
    with pytest.raises(
        ValueError, match="metadata.json: segment_codes must be an object whose keys are classes, 1; got"
    ):
        SaveDicomSegd("pred", metadata=file)
    file.write_text('{"network_data_format": {"outputs": [{"pred": 1}]}}')  # says nothing about classes
    assert [segment.name for segment in SaveDicomSegd("pred", metadata=file).segments] == ["class_1"]
    file.write_text("{")
    with pytest.raises(ValueError, match="metadata.json: not valid JSON"):
        SaveDicomSegd("pred", metadata=file)


def test_a_case_without_a_voxel_has_no_file_not_even_an_older_one(tmp_path, caplog):
    data = predicted(tmp_path, np.ones((4, 5, 6), np.uint8))
    saver = SaveDicomSegd("pred", output_dir=tmp_path)
    saver(data)
    assert (tmp_path / "scan.seg.dcm").is_file()
    data["pred"].fill_(0)
    with caplog.at_level(logging.WARNING):
        saver(data)
    assert not (tmp_path / "scan.seg.dcm").exists()
    assert "series 1 'CT Thorax': no class has a voxel; scan.seg.dcm is not written." in caplog.text


def test_an_image_that_is_no_series_is_refused(tmp_path):
    save(tmp_path / "a.nii.gz", bright_cube().astype(np.float32))
    data = Preprocessd("image", label_key=None)({"image": str(tmp_path / "a.nii.gz"), "id": "a"})
    with pytest.raises(ValueError, match="a: its image is no DICOM series"):
        SaveDicomSegd("image")(data)
