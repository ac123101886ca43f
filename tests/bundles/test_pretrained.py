"""The weights that the bundles are released with: they are the recorded ones, load everywhere, and segment."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch

from mednext_monai import Predictor, bundles
from mednext_monai.demo.synthetic import make_hippocampus
from mednext_monai.files import sha256
from mednext_monai.networks import using_backend
from mednext_monai.weights import read_settings, read_state_dict
from mednext_monai.weights.released import read_record

NAMES = [name for name in bundles.names() if bundles.has_weights(bundles.path(name))]
WITHOUT = [name for name in bundles.names() if name not in NAMES]
ELSEWHERE = """
import sys
sys.path.insert(0, {bundle!r})
import torch, monai.bundle
network = monai.bundle.load({name!r}, bundle_dir={folder!r}, device="cpu").eval()
import mednext_monai
print(mednext_monai.__file__)
with torch.no_grad():
    print(float(network(torch.linspace(-2, 2, 32 * 48 * 32).reshape(1, 1, 32, 48, 32)).double().sum()))
"""
# Sum of the logits of that input, as recorded when the weights were released.
RECORDED: dict[str, float] = {}


@pytest.mark.parametrize("name", NAMES)
def test_record_metadata_and_page_name_the_file_by_its_hash(name):
    folder = bundles.path(name)
    digest = sha256(folder / "models" / "model.pt")
    assert read_record(folder / "models")["sha256"] == digest
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["weights"]["sha256"] == digest and metadata["eval_metrics"]["mean_dice"] > 0.88
    page = (folder / "docs" / "README.md").read_text()
    assert digest in page and (folder / "docs" / "data_license.txt").is_file()


@pytest.mark.parametrize("name", WITHOUT)
def test_the_page_of_a_bundle_without_weights_says_so_and_what_to_do(name):
    page = (bundles.path(name) / "docs" / "README.md").read_text()
    assert "This bundle has no pretrained weights" in page and "Train it on your data" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_is_half_precision_and_carries_its_task(name):
    file = bundles.path(name) / "models" / "model.pt"
    assert {tensor.dtype for tensor in read_state_dict(file).values()} == {torch.float16}
    settings = read_settings(file)
    assert settings["labels"] == ["background", "Anterior", "Posterior"] and settings["fold"] == 0
    assert settings["patch_size"] == [48, 64, 48] and len(settings["training_ids"]) == 160


def ramp() -> torch.Tensor:
    return torch.linspace(-2, 2, 32 * 48 * 32).reshape(1, 1, 32, 48, 32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_gives_the_whole_network_in_single_precision_and_the_recorded_output(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not in the bundle
    folder = bundles.path(name)
    network = monai.bundle.load(name, bundle_dir=folder.parent, device="cpu", workflow_type=kind)
    stored = read_state_dict(folder / "models" / "model.pt")
    loaded = network.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(t.dtype == torch.float32 and torch.equal(t, stored[key].float()) for key, t in loaded.items())
    with torch.no_grad(), using_backend("plain"):
        total = float(network.eval()(ramp()).double().sum())
    assert total == pytest.approx(RECORDED[name], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_unzipped_bundle_loads_without_the_package(name, tmp_path):
    with zipfile.ZipFile(bundles.zip_bundle(bundles.path(name), tmp_path / "bundle.zip")) as archive:
        archive.extractall(tmp_path)
    code = ELSEWHERE.format(name=name, folder=str(tmp_path), bundle=str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, total = done.stdout.splitlines()[-2:]
    assert float(total) == pytest.approx(RECORDED[name], rel=1e-3) and Path(file).is_relative_to(tmp_path / name)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("mednext_s_k3", mirror=False)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """The lower of the Dice of the two classes."""
    values = [2 * ((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in (1, 2)]
    return float(min(values))


@pytest.mark.skipif("mednext_s_k3" not in NAMES, reason="the bundle has no weights in this checkout")
def test_an_image_is_segmented_alike_whatever_its_intensity_and_orientation(predictor):
    image, label, affine = make_hippocampus(np.random.default_rng(0))
    found = predictor(image, affine=affine)
    assert dice(found, label) > 0.5
    rescaled = predictor(image.astype(np.float32) * 37 + 1000, affine=affine)
    assert dice(found, rescaled) > 0.99
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])  # the same anatomy, stored from left to right
    flipped[0, 3] = len(image) - 1
    other = predictor(np.ascontiguousarray(image[::-1]), affine=flipped)[::-1]
    assert dice(found, other) > 0.85  # the weights know both sides
