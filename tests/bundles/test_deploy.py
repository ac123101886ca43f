"""The MONAI Deploy App SDK: what its operator for bundles does to a bundle, and an app with this operator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from helpers.dicom import write_series
from helpers.documents import read_page
from helpers.tools import environment_of, expected_result, python_path
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import MapTransform

from mednext_monai import cli

STATED = {"out_channels": 3, "patch_size": [32, 32, 32], "mirror": False}


def make_bundle(directory: Path, stated: dict = STATED) -> Path:
    """Return a bundle whose config states its task, as that of ``mednext bundle new``: no checkpoint is asked."""
    folder = make_member("mednext_s_k3", directory)
    for name in ("train", "inference"):
        file = folder / "configs" / f"{name}.json"
        content = json.loads(file.read_text())
        content.update({key: value for key, value in stated.items() if key in content})
        content["network_def"]["base_channels"] = 4
        file.write_text(json.dumps(content))
    return folder


def segment(folder: Path, image: Path) -> MetaTensor:
    """Do what ``MonaiBundleInferenceOperator`` of 4.0 does with a bundle's folder and a volume in memory."""
    config = ConfigParser()
    config.read_meta(f=json.loads((folder / "configs" / "metadata.json").read_text()))
    config.read_config([folder / "configs" / "inference.json"])
    config.parse()
    device, inferer = (config.get_parsed_content(name) for name in ("device", "inferer"))
    chains = []
    for name in ("preprocessing", "postprocessing"):
        chain = config.get_parsed_content(name)
        chain.transforms = tuple(
            t for t in chain.transforms if not any(part in type(t).__name__ for part in ("LoadImage", "SaveImage"))
        )
        assert isinstance(chain.transforms[0], MapTransform)
        chains.append(chain)
    network = config.get_parsed_content("network")
    weights = torch.load(folder / "models" / "model.pt", map_location=device)
    network.load_state_dict(weights.get("model", weights), strict=True)
    network.eval()
    file = nibabel.load(image)
    meta = {"affine": file.affine, "original_affine": file.affine, "original_channel_dim": "no_channel"}
    inputs = chains[0]({"image": MetaTensor.ensure_torch_and_prune_meta(np.asarray(file.dataobj), meta)})
    image_tensor = inputs.pop("image")
    others = {name: value[None] for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        output = inferer(inputs=image_tensor[None].to(device), network=network, **others)
    output = output[0] if isinstance(output, (list, tuple)) else output
    return chains[1]({"pred": output[0], **inputs, "image": image_tensor})["pred"]


def test_a_volume_in_memory_is_segmented(dataset, tmp_path, monkeypatch):
    folder, image = make_bundle(tmp_path / "bundles"), dataset / "imagesTs" / "box_9.nii.gz"
    monkeypatch.chdir(tmp_path)  # the operator does not say where the bundle is
    found = segment(folder, image)
    assert found.shape[0] == 1
    np.testing.assert_array_equal(found[0].numpy(), expected_result(folder, image))


@pytest.mark.slow
def test_an_app_segments_a_volume_with_a_folder_and_with_an_exported_bundle(dataset, tmp_path):
    environment = environment_of("MEDNEXT_DEPLOY_ENV", "monai.deploy")
    folder, image = make_bundle(tmp_path / "bundles"), dataset / "imagesTs" / "box_9.nii.gz"
    configs, exported = folder / "configs", tmp_path / "model.ts"
    files = (configs / "metadata.json", configs / "inference.json")
    monai.bundle.ckpt_export("network_def", exported, folder / "models" / "model.pt", *map(str, files))
    expected = expected_result(folder, image)
    app = Path(sys.modules["helpers.tools"].__file__).with_name("deploy_app.py")
    for bundle in (folder, exported):
        target = tmp_path / f"{bundle.name}.npy"
        command = [environment / "bin" / "python", app, bundle, image, target]
        subprocess.run(command, check=True, cwd=tmp_path, env=python_path(), timeout=600)
        np.testing.assert_array_equal(np.load(target), expected)


@pytest.mark.slow
def test_the_app_of_the_page_writes_the_same_dicom_seg_as_predict(tmp_path):
    environment = environment_of("MEDNEXT_DEPLOY_ENV", "monai.deploy")
    pydicom, segread = pytest.importorskip("pydicom"), pytest.importorskip("highdicom").seg.segread
    # a copy of a published bundle: only the checkpoint says how many classes there are and how images are normalized
    folder, export = make_bundle(tmp_path / "bundles", {"mirror": False}), tmp_path / "export"
    (block,) = (code for code in read_page("bundle").python if "monai.deploy" in code)
    (folder / "app.py").write_text(block)
    values = np.random.default_rng(0).normal(scale=20, size=(40, 36, 44)).cumsum(axis=0).astype(np.int16)
    thickness = {"change": lambda _, image: setattr(image, "SliceThickness", 1)}  # which the writer of the SDK needs
    files = write_series(export, values, spacing=(1, 1), distance=1, **thickness)
    command = [environment / "bin" / "python", folder / "app.py", "--input", "export", "--output", "app"]
    subprocess.run(command, check=True, cwd=tmp_path, env=python_path(), timeout=600)
    arguments = ["--dicom_seg", "true", "--mirror", "false"]
    assert cli.main(["predict", str(folder), str(export), str(tmp_path / "ours"), *arguments]) == 0
    pixels = []
    for file in (*(tmp_path / "app").glob("*.dcm"), tmp_path / "ours" / "export.seg.dcm"):
        instances = [pydicom.dcmread(image).SOPInstanceUID for image in files]
        options = {"ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}
        pixels.append(segread(file).get_pixels_by_source_instance(instances, **options))
    assert len(pixels) == 2 and pixels[0].any(axis=(0, 1, 2)).all()
    np.testing.assert_array_equal(*pixels)
