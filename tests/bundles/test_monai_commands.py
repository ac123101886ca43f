"""MONAI's own commands on the bundles: verify, load, export, and the properties of a workflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from helpers.bundles import make_trained
from monai.bundle import ConfigWorkflow

from mednext_monai import bundles
from mednext_monai.networks import using_backend

ROOT = Path(__file__).resolve().parents[2]
NAMES = bundles.names()
SCHEMA = ROOT / "mednext_monai" / "bundles" / "metadata_schema.json"


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_valid(name, tmp_path):
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    monai.bundle.verify_metadata(meta_file=str(bundles.path(name) / "configs" / "metadata.json"), filepath=schema)


def test_the_schema_refuses_metadata_without_a_version(tmp_path):
    content = json.loads((bundles.path(NAMES[0]) / "configs" / "metadata.json").read_text())
    del content["version"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    with pytest.raises(ValueError, match="version"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


@pytest.mark.parametrize("name", NAMES)
def test_network_takes_and_gives_what_the_metadata_says(name):
    configs = bundles.path(name) / "configs"
    monai.bundle.verify_net_in_out(
        "network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu"
    )


@pytest.mark.parametrize("name", NAMES)
def test_weights_export_to_torchscript(name, tmp_path):
    folder = make_trained(name, tmp_path)
    configs = folder / "configs"
    target = folder / "models" / "model.ts"
    monai.bundle.ckpt_export(
        "network_def",
        target,
        folder / "models" / "model.pt",
        str(configs / "metadata.json"),
        str(configs / "inference.json"),
    )
    exported, metadata, _ = monai.data.load_net_with_metadata(str(target))
    network = monai.bundle.load(name, bundle_dir=folder.parent, device="cpu").eval()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad(), using_backend("plain"):  # what was exported
        torch.testing.assert_close(exported.eval()(x), network(x))
    assert metadata["name"] == name


def test_load_returns_the_network_with_its_weights_and_net_override_changes_it(tmp_path):
    folder = make_trained("mednext_s_k3", tmp_path)
    saved = torch.load(folder / "models" / "model.pt", weights_only=True)
    network = monai.bundle.load("mednext_s_k3", bundle_dir=folder.parent, device="cpu")
    assert all(torch.equal(saved[key], value) for key, value in network.state_dict().items())
    other = monai.bundle.load("mednext_s_k3", bundle_dir=folder.parent, device="cpu", net_override={"out_channels": 7})
    assert other.out_0.conv_out.weight.shape[1] == 7
    assert torch.equal(other.stem.weight, saved["stem.weight"])


def test_load_without_weights_says_so_and_asks_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr("monai.bundle.scripts.download", refuse)
    with pytest.raises(Exception, match="This bundle has no trained weights yet: train it") as error:
        monai.bundle.load("mednext_m_k3", bundle_dir=ROOT / "bundles")
    assert "tried to download" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_all_properties_of_a_bundle_workflow_are_there(name, config, kind, dataset):
    workflow = ConfigWorkflow(
        config_file=str(bundles.path(name) / "configs" / f"{config}.json"),
        workflow_type=kind,
        dataset_dir=str(dataset),
        bundle_root=str(dataset),
        network_def={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
