"""The folder of a pull request to MONAI's model zoo: complete, within its limits, and its test passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from helpers.bundles import make_member
from helpers.release import make_released

from mednext_monai import bundles
from mednext_monai.bundles import zoo
from mednext_monai.cli import main
from mednext_monai.files import sha256

SECTIONS = ("Authors", "Tags", "Model Description", "Data", "Performance", "System Configuration", "References")


def test_it_has_the_bundle_and_a_test(tmp_path, capsys):
    bundle = make_released(tmp_path, "boxes")
    assert main(["bundle", "zoo", str(bundle), str(tmp_path / "zoo")]) == 0
    files = {str(file.relative_to(tmp_path / "zoo")) for file in (tmp_path / "zoo").rglob("*") if file.is_file()}
    assert {"models/boxes/LICENSE", "models/boxes/configs/metadata.json", "models/boxes/models/model.pt"} <= files
    assert {"models/boxes/docs/data_license.txt", "ci/unit_tests/test_boxes.py"} <= files
    assert not any(name.endswith((".gitignore", "large_files.yml")) or "eval" in name.split("/") for name in files)
    compile((tmp_path / "zoo/ci/unit_tests/test_boxes.py").read_text(), "test_boxes.py", "exec")


def test_the_page_has_the_sections_that_the_zoo_asks_for(tmp_path):
    page = (make_released(tmp_path) / "docs" / "README.md").read_text()
    generic = (bundles.path("mednext_l_k3") / "docs" / "README.md").read_text()
    assert all(f"# **{name}**\n" in page for name in SECTIONS)
    assert all(f"# **{name}**\n" in generic for name in ("Authors", "Tags", "Model Description", "References"))


def test_a_large_file_is_a_link_with_its_hash(tmp_path, monkeypatch):
    bundle = make_released(tmp_path, "boxes")
    monkeypatch.setattr(zoo, "LARGEST", 100_000)
    with pytest.raises(ValueError, match=r"weights_url: models/model.pt \(\d+ MB\) is above 25 MB"):
        bundles.zoo_folder(bundle, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
    folder = bundles.zoo_folder(bundle, tmp_path / "zoo", "https://example.org/model.pt") / "models" / "boxes"
    assert not (folder / "models" / "model.pt").exists()
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    expected = {"path": "models/model.pt", "url": "https://example.org/model.pt", "hash_type": "sha256"}
    assert entry == {**expected, "hash_val": sha256(bundle / "models" / "model.pt")}


def test_what_cannot_be_submitted_is_refused(tmp_path):
    bundle = make_member("mednext_s_k3", tmp_path / "a")
    with pytest.raises(ValueError, match="mednext_l_k5 has no weights, which the zoo asks for"):
        bundles.zoo_folder(bundles.path("mednext_l_k5"), tmp_path / "zoo")
    with pytest.raises(FileExistsError, match="exists already and is not empty"):
        bundles.zoo_folder(bundle, tmp_path)
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": "9.9.9"}))
    with pytest.raises(ValueError, match="version 9.9.9 is not in the changelog"):
        bundles.zoo_folder(bundle, tmp_path / "zoo")


@pytest.mark.slow
def test_the_test_in_the_form_of_the_zoo_passes(tmp_path):
    bundle = make_released(tmp_path, "boxes")
    for file in (bundle / "configs" / "train.json", bundle / "configs" / "inference.json"):
        content = json.loads(file.read_text())
        content["network_def"]["base_channels"] = 4
        file.write_text(json.dumps(content))
    folder = bundles.zoo_folder(bundle, tmp_path / "zoo")
    command = [sys.executable, "-m", "unittest", "ci/unit_tests/test_boxes.py"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
