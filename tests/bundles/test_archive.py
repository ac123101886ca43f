"""Zips of bundles: reproducible, and their bundle runs with the modules in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pytest
from helpers.bundles import make_member, make_trained
from helpers.tools import expected_result

from mednext_monai import bundles


def test_zip_is_reproducible_and_its_bundle_runs_from_its_own_modules(tmp_path, dataset):
    folder = make_trained("mednext_s_k3", tmp_path)
    (folder / "models" / "fold_1").mkdir()
    for name in ("last.pt", "last.previous.pt", "nonfinite.pt", "fold_1/last.pt", "fold_1/last.previous.pt"):
        (folder / "models" / name).write_bytes(b"not for others")
    (folder / "models" / "fold_1" / "model.pt").write_bytes(b"for others")
    first = bundles.zip_bundle(folder, tmp_path / "a.zip").read_bytes()
    assert first == bundles.zip_bundle(folder, tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = archive.namelist()
        archive.extractall(tmp_path / "unzipped")
    assert "mednext_s_k3/models/fold_1/model.pt" in members
    assert "mednext_s_k3/models/model.pt" in members and "mednext_s_k3/mednext_monai/networks/mednext.py" in members
    assert not [m for m in members if "last" in m or "nonfinite.pt" in m or "_bundles" in m or "__pycache__" in m]
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
            "false",
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


WITHOUT_PACKAGE = """
import runpy, sys
from importlib.machinery import PathFinder
installed = list(sys.path)
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "mednext_monai":
            path = [folder for folder in sys.path if folder not in installed]
        return super().find_spec(name, path, target)
sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("unzips_the_package", [True, False])
def test_an_unzipped_bundle_is_started_from_another_folder_without_the_package(tmp_path, dataset, unzips_the_package):
    folder = make_member("mednext_s_k3", tmp_path)
    bundles.zip_bundle(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = [name for name in archive.namelist() if unzips_the_package or "/mednext_monai/" not in name]
        archive.extractall(tmp_path / "unzipped", members)
    unzipped, cwd = tmp_path / "unzipped" / "mednext_s_k3", tmp_path / "elsewhere"
    cwd.mkdir()
    config, image = unzipped / "configs" / "inference.json", dataset / "imagesTs" / "box_9.nii.gz"
    options = ["--config_file", config, "--bundle_root", unzipped, "--input", image, "--mirror", "false"]
    command = [sys.executable, "-c", WITHOUT_PACKAGE, "run", *options, "--output_dir", "out", "--num_workers", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment, check=False)
    if unzips_the_package:
        assert result.returncode == 0, result.stderr[-3000:]
        found = np.asarray(nibabel.load(cwd / "out" / "box_9.nii.gz").dataobj)
        np.testing.assert_array_equal(found, expected_result(folder, image))
    else:
        assert result.returncode == 1 and "Traceback" not in result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("This bundle needs the package mednext-monai") and "pip install mednext-monai" in last
