"""``mednext predict`` on DICOM series, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_trained
from helpers.datasets import save
from helpers.dicom import OBLIQUE, write_series
from monai.bundle import ConfigParser, ConfigWorkflow

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
OPTIONS = ("--patch_size", "32", "--mirror", "false", "--device", "cpu")


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle whose network has random weights but no preference for a class."""
    torch.manual_seed(0)
    folder = make_trained("mednext_s_k3", tmp_path, base_channels=2)
    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    weights["out_0.conv_out.bias"].zero_()
    weights["out_0.conv_out.weight"][:, 1] = -weights["out_0.conv_out.weight"][:, 0]
    torch.save(weights, folder / "models" / "model.pt")
    return folder


@pytest.fixture
def export(tmp_path) -> Path:
    """Two patients as hospitals export them, the second with another file in the folder of the series."""
    for seed, name in enumerate(("p1/ct", "p2/ct")):
        stored = np.random.default_rng(seed).integers(0, 500, (14, 24, 20)).astype(np.int16)
        write_series(tmp_path / "export" / name, stored, orientation=OBLIQUE, spacing=(1.5, 1.5), distance=2)
    (tmp_path / "export" / "p2" / "ct" / "VIEWER.EXE").write_bytes(b"MZ")
    return tmp_path / "export"


def predict(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mednext_monai", "predict", *map(str, arguments), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_predict_segments_the_series_of_an_export_as_nifti_and_dicom(bundle, export, tmp_path):
    result = predict(bundle, export, tmp_path / "out", "--dicom_seg", "true")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "p1_ct.nii.gz",
        "p1_ct.seg.dcm",
        "p2_ct.nii.gz",
        "p2_ct.seg.dcm",
    ]
    classes = np.asarray(nibabel.load(tmp_path / "out" / "p2_ct.nii.gz").dataobj)
    assert classes.shape == (20, 24, 14) and set(np.unique(classes)) == {0, 1}
    files = sorted((export / "p2" / "ct").glob("IM*"))
    found = highdicom.seg.segread(tmp_path / "out" / "p2_ct.seg.dcm")
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    planes = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(planes.transpose(), classes)
    assert found.SegmentSequence[0].SegmentLabel == "foreground"  # of the metadata, since the weights do not say
    (tmp_path / "out" / "p1_ct.seg.dcm").unlink()
    for count in (1, 2):
        result = predict(bundle, export, tmp_path / "out", "--dicom_seg", "true")
        assert result.returncode == 0 and f"{count} of 2 cases are finished" in result.stdout


@pytest.mark.slow
def test_predict_names_a_gap_as_its_last_line_and_segments_the_other_series(bundle, export, tmp_path):
    (export / "p2" / "ct" / "IM0005").unlink()
    result = predict(bundle, export, tmp_path / "out")
    assert result.returncode == 1
    assert "IM0004 and" in result.stderr.splitlines()[-1] and "4.000 mm apart" in result.stderr.splitlines()[-1]
    assert "mednext: error: 1 of 2 cases could not be segmented:\n  p2_ct: " in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["p1_ct.nii.gz"]


def start(bundle: Path, images: Path, output: Path, **options: object) -> ConfigParser:
    """Initialize a run in this process."""
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        input=str(images),
        output_dir=str(output),
        patch_size=32,
        device="cpu",
        **options,
    )
    workflow.initialize()
    return workflow.parser


def run_checks(*arguments: Path, **options: object) -> None:
    """Evaluate the checks of a run in this process."""
    start(*arguments, **options).get_parsed_content("checks")


def test_an_ensemble_of_different_preprocessing_writes_dicom_seg(bundle, export, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other")
    config = json.loads((other / "configs" / "inference.json").read_text())
    changes = {"spacing": [2.0, 2.0, 1.0], "patch_size": 32}
    (other / "configs" / "inference.json").write_text(json.dumps({**config, **changes}))
    options = {"ensemble": str(other), "dicom_seg": True, "mirror": False, "num_workers": 0}
    parser = start(bundle, export, tmp_path / "out", **options)
    assert len(parser.get_parsed_content("members").groups) == 2
    parser.get_parsed_content("evaluator").run()
    for name in ("p1", "p2"):
        classes = np.asarray(nibabel.load(tmp_path / "out" / f"{name}_ct.nii.gz").dataobj)
        found = highdicom.seg.segread(tmp_path / "out" / f"{name}_ct.seg.dcm")
        uids = [pydicom.dcmread(file).SOPInstanceUID for file in sorted((export / name / "ct").glob("IM*"))]
        planes = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(planes.transpose(), classes)


def test_dicom_seg_of_nifti_is_an_error_before_the_first_case(bundle, export, tmp_path):
    save(tmp_path / "nifti" / "a.nii.gz", np.ones((8, 8, 8), np.float32))
    with pytest.raises((ValueError, RuntimeError)) as error:
        run_checks(bundle, tmp_path / "nifti", tmp_path / "out", dicom_seg="true")
    assert "a.nii.gz is not DICOM" in str(error.getrepr(chain=True))
    run_checks(bundle, tmp_path / "nifti", tmp_path / "out", dicom_seg="false")
    run_checks(bundle, export, tmp_path / "out", dicom_seg="true")


def test_wrong_codes_in_the_metadata_of_the_bundle_are_an_error_before_the_first_case(bundle, export, tmp_path):
    file = bundle / "configs" / "metadata.json"
    content = json.loads(file.read_text())
    content["network_data_format"]["outputs"]["pred"]["segment_codes"] = {"1": {"type": "Liver"}}
    file.write_text(json.dumps(content))
    with pytest.raises((ValueError, RuntimeError)) as error:
        run_checks(bundle, export, tmp_path / "out", dicom_seg=True)
    assert "segment_codes, class 1, type: must be value, scheme" in str(error.getrepr(chain=True))
