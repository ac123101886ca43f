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

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import make_member
from helpers.tools import environment_of, expected_result, python_path
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import partition_dataset
from monai.transforms import SaveImaged

from mednext_monai import Predictor


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


TINY = {"patch_size": [32, 32, 32], "batch_size": 2, "num_workers": 0, "pseudo_dice_batches": 1, "seed": 0}


def training_options(folder: Path, cases: list[dict], val_split: float) -> dict:
    """Return what ``monailabel.tasks.train.bundle.BundleTrainTask`` of 0.8.5 passes to ``monai.bundle.run``."""
    config = ConfigParser()
    config.read_config(str(folder / "configs" / "train.json"))
    config.config.update({"bundle_root": str(folder)})
    training, validation = cases, []
    if val_split > 0:
        training, validation = partition_dataset(cases, ratios=[1 - val_split, val_split], shuffle=False)
    handlers, load_path = config.get("train#handlers", []), str(folder / "models" / "model.pt")
    if not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]:
        loader = {"_target_": "CheckpointLoader", "load_path": load_path, "load_dict": {"model": "$@network"}}
        handlers.insert(0, {**loader, "strict": False})
    return {
        "bundle_root": str(folder),
        "train#trainer#max_epochs": 1,
        "train#dataset#data": training,
        "device": "cpu",
        "train#handlers": handlers,
        "validate#dataset#data": validation,
    }


def make_trainable(directory: Path, **options) -> Path:
    """Return a bundle with weights for a training of a few steps; its data set is not on this computer."""
    folder = make_member("mednext_s_k3", directory)
    file = folder / "configs" / "train.json"
    content = json.loads(file.read_text())
    content.update({**TINY, "out_channels": 3, "iterations_per_epoch": 2, "val_interval": 1, **options})
    content["network_def"]["base_channels"] = 4
    file.write_text(json.dumps(content))
    file = folder / "configs" / "metadata.json"
    content = json.loads(file.read_text())
    pred = content["network_data_format"]["outputs"]["pred"]
    pred.update(num_channels=3, channel_def={"0": "background", "1": "Outer", "2": "Inner"})
    file.write_text(json.dumps(content))
    return folder


def listed(dataset: Path, count: int) -> list[dict]:
    names = [f"box_{number}.nii.gz" for number in range(count)]
    return [{"image": str(dataset / "imagesTr" / n), "label": str(dataset / "labelsTr" / n)} for n in names]


@pytest.mark.parametrize(("count", "split", "sizes"), [(4, 0.25, (3, 1)), (2, 0.0, (2, 0))])
def test_a_training_uses_the_cases_that_are_passed_to_it(dataset, tmp_path, count, split, sizes):
    folder = make_trainable(tmp_path / "bundles", overwrite=True)
    options = training_options(folder, listed(dataset, count), split)
    workflow = ConfigWorkflow(str(folder / "configs" / "train.json"), workflow_type="train", **options)
    workflow.initialize()
    assert workflow.check_properties() == []
    cases = workflow.parser.get_parsed_content("used_cases")
    assert [case["id"] for case in cases["training"]] == [f"box_{number}" for number in range(sizes[0])]
    assert len(cases["validation"]) == sizes[1] == len(workflow.val_dataset)
    assert not (folder / "cache").exists()
    workflow.parser.get_parsed_content("checks")
    sample = workflow.train_dataset[0]
    assert sample["image"].shape == (1, 32, 32, 32) and sample["id"] in {case["id"] for case in cases["training"]}
    names = workflow.parser.get_parsed_content("carried_settings")["labels"]
    assert names == ["background", "Outer", "Inner"]  # of the metadata: there is no data set


@pytest.mark.slow
@pytest.mark.parametrize("split", [0.25, 0.0])
def test_a_training_of_passed_cases_goes_on_from_the_weights_and_replaces_them(dataset, tmp_path, split):
    folder = make_trainable(tmp_path / "bundles", overwrite=True)
    before = torch.load(folder / "models" / "model.pt", weights_only=True)
    options = training_options(folder, listed(dataset, 4), split)
    configs = {
        "meta_file": str(folder / "configs" / "metadata.json"),
        "config_file": str(folder / "configs/train.json"),
    }
    monai.bundle.run(run_id="run", init_id=None, final_id=None, **configs, **options)
    after = torch.load(folder / "models" / "model.pt", weights_only=True)
    change = max(float((after[key] - before[key]).abs().max()) for key in before)
    assert before.keys() == after.keys() and 0 < change < 0.1
    schedule = torch.load(folder / "models" / "last.pt", weights_only=True)["lr_scheduler"]
    assert schedule["total_iters"] == 1 and schedule["_last_lr"] == [0.0]
    assert (folder / "models" / "model_best.pt").exists() == (split > 0)


@pytest.fixture
def server(dataset, tmp_path):
    """Start the server with a bundle and the images of a data set; yield its address and the bundle."""
    environment = environment_of("MEDNEXT_LABEL_ENV", "monailabel")
    app, studies = tmp_path / "app", tmp_path / "studies"
    (found,) = environment.glob("monailabel/sample-apps/monaibundle")
    shutil.copytree(found, app, ignore=shutil.ignore_patterns("__pycache__", "logs"))
    bundle = make_trainable(app / "model", overwrite=True)
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
    assert model["config"]["mirror"] is True and model["labels"] == {"outer": 1, "inner": 2}
    params = {"params": json.dumps({"device": "cpu", "mirror": False})}
    answer = post(f"{address}/infer/{bundle.name}?image=box_2&output=image", params)
    (tmp_path / "answer.nii.gz").write_bytes(answer)
    found, image = nibabel.load(tmp_path / "answer.nii.gz"), dataset / "imagesTr" / "box_2.nii.gz"
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected_result(bundle, image))
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine, atol=0.03)  # ITK writes no shear


@pytest.mark.slow
def test_the_server_trains_and_segments_with_the_new_weights(server, dataset, tmp_path):
    address, bundle, log = server
    before = (bundle / "models" / "model.pt").read_bytes()
    request = {"max_epochs": 1, "device": "cpu", "val_split": 0.2, "pretrained": True}
    post(f"{address}/train/{bundle.name}?run_sync=true", data=request)
    assert (bundle / "models" / "model.pt").read_bytes() != before, log.read_text()[-4000:]
    params = {"params": json.dumps({"device": "cpu", "mirror": False})}
    answer = post(f"{address}/infer/{bundle.name}?image=box_2&output=image", params)
    (tmp_path / "answer.nii.gz").write_bytes(answer)
    found, image = nibabel.load(tmp_path / "answer.nii.gz"), dataset / "imagesTr" / "box_2.nii.gz"
    expected = np.asarray(Predictor(bundle, device="cpu", mirror=False)(nibabel.load(image)).dataobj)
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
