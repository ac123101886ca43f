"""MONAI Label's app ``monaibundle``: what its source does to a bundle, and its server."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from helpers.tools import environment_of, expected_result, python_path
from monai.bundle import ConfigParser
from monai.transforms import SaveImaged


class Inference:
    """What ``monailabel.tasks.infer.bundle.BundleInferTask`` of 0.8.5 does to a bundle, in its order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = ConfigParser()
        self.config.read_config(str(folder / "configs" / "inference.json"))
        self.config.config.update({"bundle_root": str(folder)})
        self.config.config["use_click"] = False
        self.network = self.config.get_parsed_content("network_def", instantiate=True)
        self.options = self.config.get_parsed_content("displayable_configs", instantiate=True)
        metadata = json.loads((folder / "configs" / "metadata.json").read_text())
        described = next(iter(metadata["network_data_format"]["outputs"].values()))["channel_def"]
        self.labels = {name.lower(): int(value) for value, name in described.items() if name.lower() != "background"}

    def __call__(self, image: Path, **request) -> dict:
        data = {"device": "cpu", **self.options, **request, "image": str(image), "image_path": str(image)}
        self.config["displayable_configs"].update({name: data[name] for name in self.options})
        self.config.parse()
        self.config.config.update({"device": data["device"]})
        for transform in self.config.get_parsed_content("preprocessing").transforms:
            data = transform(data)
        weights = torch.load(self.folder / "models" / "model.pt", map_location="cpu")
        self.network.load_state_dict(weights.get("model", weights), strict=False)
        self.network.eval()
        with torch.no_grad():
            data["pred"] = self.config.get_parsed_content("inferer")(data["image"][None], self.network)[0]
        for transform in self.config.get_parsed_content("postprocessing").transforms:
            if not isinstance(transform, SaveImaged):
                data = transform(data)
        return data


def test_an_image_is_segmented_with_the_options_that_the_user_chooses(dataset, tmp_path):
    folder, image = make_member("mednext_s_k3", tmp_path), dataset / "imagesTs" / "box_9.nii.gz"
    task = Inference(folder)
    assert task.options == {"mirror": True, "overlap": 0.5, "sw_batch_size": 1}
    data = task(image, mirror=False)
    np.testing.assert_array_equal(data["pred"][0].numpy(), expected_result(folder, image))
    assert data["pred"].shape[1:] == tuple(data["image"].meta["spatial_shape"])  # Label would resize it
    np.testing.assert_allclose(data["image"].meta["original_affine"], nibabel.load(image).affine, atol=1e-5)
    assert not task.config.get_parsed_content("inferer").mirror
    task(image, mirror=True)
    assert task.config.get_parsed_content("inferer").mirror


@pytest.fixture
def server(dataset, tmp_path):
    """Start the server with a bundle and the images of a data set; yield its address and the bundle."""
    environment = environment_of("MEDNEXT_LABEL_ENV", "monailabel")
    app, studies = tmp_path / "app", tmp_path / "studies"
    (found,) = environment.glob("monailabel/sample-apps/monaibundle")
    shutil.copytree(found, app, ignore=shutil.ignore_patterns("__pycache__", "logs"))
    bundle = make_member("mednext_s_k3", app / "model")
    shutil.copytree(dataset / "imagesTr", studies)
    shutil.copytree(dataset / "labelsTr", studies / "labels" / "final")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [environment / "bin/python", "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--conf", "models", bundle.name, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=python_path(), cwd=tmp_path, stdout=output, stderr=output)
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()[-4000:]
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/info/"):
                    break
                time.sleep(1)
            yield address, bundle, log
        finally:
            process.terminate()
            process.wait(60)


def post(address: str, fields: dict[str, str] | None = None, data: dict | None = None) -> bytes:
    """Post a form, or JSON."""
    boundary = uuid.uuid4().hex
    form = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in (fields or {}).items()
    )
    body = json.dumps(data).encode() if fields is None else f"{form}--{boundary}--\r\n".encode()
    kind = "application/json" if fields is None else f"multipart/form-data; boundary={boundary}"
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=600) as response:
        return response.read()


@pytest.mark.slow
def test_the_server_segments_an_image(server, dataset, tmp_path):
    address, bundle, _ = server
    with urllib.request.urlopen(f"{address}/info/") as response:
        model = json.load(response)["models"][bundle.name]
    assert model["config"]["mirror"] is True and model["labels"] == {"foreground": 1}
    params = {"params": json.dumps({"device": "cpu", "mirror": False})}
    answer = post(f"{address}/infer/{bundle.name}?image=box_2&output=image", params)
    (tmp_path / "answer.nii.gz").write_bytes(answer)
    found, image = nibabel.load(tmp_path / "answer.nii.gz"), dataset / "imagesTr" / "box_2.nii.gz"
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected_result(bundle, image))
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine, atol=1e-4)
