"""3D Slicer's extension MONAIAuto3DSeg: what its script for bundles does to a bundle, and the script itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.bundles import make_member
from helpers.tools import expected_result, python_path
from monai.bundle import ConfigParser


def test_the_image_that_the_script_lists_is_segmented(dataset, tmp_path, monkeypatch):
    folder, image = make_member("mednext_s_k3", tmp_path), dataset / "imagesTs" / "box_9.nii.gz"
    monkeypatch.chdir(tmp_path)
    config = ConfigParser()
    config.read_config(str(folder / "configs" / "inference.json"))
    config["bundle_root"] = str(folder)
    config["dataset_dir"] = str(image.parent)
    config["output_dir"] = str(tmp_path / "out")
    config["datalist"] = [str(image)]
    config["window_device"] = "cpu"
    config["device"] = "cpu"
    config["inferer"]["device"] = "cpu"
    config["dataloader"]["num_workers"] = 0
    config["mirror"] = False  # for speed, not by the script
    assert len(config.get_parsed_content("dataloader")) == 1
    config.get_parsed_content("evaluator").run()
    (result,) = (tmp_path / "out").rglob("*.nii.gz")
    found = nibabel.load(result)
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected_result(folder, image))
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_the_script_segments_an_image(dataset, tmp_path, ending):
    script = Path(os.environ.get("MEDNEXT_SLICER_SCRIPT", "nowhere"))
    if not script.is_file():
        pytest.skip("MEDNEXT_SLICER_SCRIPT does not name monaibundle_inference.py, see tests/README.md")
    folder, image = make_member("mednext_s_k3", tmp_path), dataset / "imagesTs" / "box_9.nii.gz"
    config = folder / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"mirror": true', '"mirror": false'))
    volume = nibabel.load(image)
    source = tmp_path / f"input-volume0{ending}"
    if ending == ".nrrd":
        nrrd = pytest.importorskip("nrrd")
        affine = np.diag([-1, -1, 1, 1]) @ volume.affine  # LPS
        space = {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
        }
        nrrd.write(str(source), np.asarray(volume.dataobj), space)
    else:
        nibabel.save(volume, source)
    target = tmp_path / "result" / "segmentation.nii.gz"
    command = [sys.executable, script, "--bundle_root_dir", folder, "--image_file", source, "--result_file", target]
    subprocess.run(command, check=True, cwd=tmp_path, env=python_path(CUDA_VISIBLE_DEVICES=""), timeout=600)
    found = nibabel.load(target)
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected_result(folder, image))
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-4)
