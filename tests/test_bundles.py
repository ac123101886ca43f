"""The bundles: built from their source, found, copied, zipped; valid for MONAI's own checks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mednext_monai import bundles
from mednext_monai.bundles.build import _load_yaml
from mednext_monai.bundles.package import PLACEHOLDER
from mednext_monai.networks import VARIANTS, create_mednext, using_backend

ROOT = Path(__file__).resolve().parents[1]
NAMES = bundles.names()
BASE_CHANNELS = 8
SCHEMA = ROOT / "mednext_monai" / "bundles" / "metadata_schema.json"


def variant_of(name: str) -> tuple[str, int]:
    return name.split("_")[1].upper(), int(name[-1])


@pytest.fixture
def trained(tmp_path):
    """A copy of a bundle whose network is narrower, for speed, and which has weights."""

    def make(name: str) -> Path:
        folder = bundles.copy(name, tmp_path / "bundles")
        variant, kernel_size = variant_of(name)
        network = create_mednext(variant, kernel_size, deep_supervision=True, base_channels=BASE_CHANNELS)
        torch.save(network.state_dict(), folder / "models" / "model.pt")
        for file in (folder / "configs" / "train.json", folder / "configs" / "inference.json"):
            content = json.loads(file.read_text())
            content["network_def"]["base_channels"] = BASE_CHANNELS
            file.write_text(json.dumps(content))
        return folder

    return make


def test_every_committed_bundle_is_what_its_source_makes():
    assert bundles.check(ROOT / "bundles", ROOT / "configs") == []


def test_a_changed_a_missing_and_an_unbuilt_file_are_each_named(tmp_path):
    output = tmp_path / "bundles"
    bundles.build(output, ROOT / "configs")
    assert bundles.check(output, ROOT / "configs") == []
    train = output / "mednext_b_k5" / "configs" / "train.json"
    train.write_text(train.read_text().replace("0.001", "0.002"))
    (output / "mednext_l_k3" / "LICENSE").unlink()
    differences = bundles.check(output, ROOT / "configs")
    assert len(differences) == 2
    assert "mednext_b_k5/configs/train.json: differs" in differences[0]
    assert "mednext_l_k3/LICENSE: missing" in differences[1]
    assert {f.name for f in bundles.build(output, ROOT / "configs")} == {"train.json", "LICENSE"}


def test_a_build_keeps_trained_weights(tmp_path):
    bundles.build(tmp_path, ROOT / "configs")
    weights = tmp_path / "mednext_s_k3" / "models" / "model.pt"
    weights.write_bytes(b"trained")
    bundles.build(tmp_path, ROOT / "configs")
    assert weights.read_bytes() == b"trained"


@pytest.mark.parametrize(
    ("text", "message"),
    [("lr: 1e-3", "read as a string"), ("a: 1\na: 2", "duplicate"), ("a: '$@b +'", "no Python expression")],
)
def test_source_pitfalls_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        _load_yaml(text, "train.yaml")


def test_there_is_a_bundle_for_each_variant_and_kernel():
    assert {variant_of(name) for name in NAMES} == {(v, k) for v in VARIANTS for k in (3, 5)}
    for name in NAMES:
        content = json.loads((bundles.path(name) / "configs" / "train.json").read_text())
        assert (content["variant"], content["kernel_size"]) == variant_of(name)


def test_the_page_maps_all_19_published_trainers_to_a_bundle_and_a_learning_rate():
    rates = {"": None, "_lr_5e_4": 0.0005, "_lr_25e_5": 0.00025, "_lr_1e_4": 0.0001}
    published = {f"{variant}_kernel3" for variant in "SBML"} | {
        f"{variant}_kernel5{rate}" for variant in "SBML" for rate in rates if (variant, rate) != ("S", "_lr_5e_4")
    }
    page = (bundles.path("mednext_s_k3") / "docs" / "README.md").read_text()
    section = page.split("## Published settings")[1].split("\n## ")[0]
    found = []
    for row in section.splitlines()[6:]:
        cells = [re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:-1]]
        if len(cells) != 3:
            continue
        for trainer, bundle in zip(cells[0], cells[1]):
            variant, kernel, rate = re.fullmatch(r"([SBML])_kernel([35])(\w*)", trainer).groups()
            assert bundle == f"mednext_{variant.lower()}_k{kernel}" and bundle in NAMES
            assert cells[2] == ([f"--learning_rate {rates[rate]}"] if rate else [])
            found.append(trainer)
        assert len(cells[0]) == len(cells[1])
    assert len(found) == 19 and set(found) == published


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="mednext_s_k3"):
        bundles.path("mednext_xl_k3")


def test_copy_never_overwrites(tmp_path):
    folder = bundles.copy("mednext_s_k3", tmp_path)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        bundles.copy("mednext_s_k3", tmp_path)
    assert (folder / "mine.txt").read_text() == "mine"


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
def test_weights_export_to_torchscript(name, trained):
    folder = trained(name)
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


def test_load_returns_the_network_with_its_weights_and_net_override_changes_it(trained):
    folder = trained("mednext_s_k3")
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
        monai.bundle.load("mednext_s_k3", bundle_dir=ROOT / "bundles")
    assert "tried to download" not in str(error.value)


def test_the_placeholder_runs_nothing_even_where_pickles_are_trusted(tmp_path):
    (tmp_path / "model.pt").write_bytes(PLACEHOLDER)
    with pytest.raises(ModuleNotFoundError, match="no trained weights"):
        torch.load(tmp_path / "model.pt", weights_only=False)


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


def test_zip_is_reproducible_and_its_bundle_runs_from_its_own_modules(trained, tmp_path, dataset):
    folder = trained("mednext_s_k3")
    (folder / "models" / "last.pt").write_bytes(b"not for others")
    first = bundles.zip_bundle(folder, tmp_path / "a.zip").read_bytes()
    assert first == bundles.zip_bundle(folder, tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = archive.namelist()
        archive.extractall(tmp_path / "unzipped")
    assert "mednext_s_k3/models/model.pt" in members and "mednext_s_k3/mednext_monai/networks/mednext.py" in members
    assert not [m for m in members if "last.pt" in m or "_bundles" in m or "__pycache__" in m]
    unzipped = tmp_path / "unzipped" / "mednext_s_k3"
    where = "$print('from', mednext_monai.__file__)"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            "configs/inference.json",
            "--dataset_dir",
            str(dataset),
            "--patch_size",
            "[32,32,32]",
            "--mirror",
            "False",
            "--initialize",
            f"['$import mednext_monai', \"{where}\"]",
        ],
        cwd=unzipped,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"from {unzipped / 'mednext_monai' / '__init__.py'}" in result.stdout
    assert (unzipped / "eval" / "box_9.nii.gz").is_file()


def test_command_line_builds_and_checks(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mednext_monai.bundles", "--check"], capture_output=True, text=True, cwd=tmp_path
    )
    installed = "site-packages" in str(Path(bundles.__file__))
    assert result.returncode == (1 if installed else 0)
    assert ("checkout" if installed else "are what configs/ makes them") in result.stdout + result.stderr
