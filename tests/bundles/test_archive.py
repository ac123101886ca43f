"""Zips of bundles: reproducible, and their bundle runs with the modules in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile

from helpers.bundles import make_trained

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
