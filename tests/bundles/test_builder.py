"""Building the bundles: what is committed is what ``configs/`` gives; mistakes in the sources are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mednext_monai import bundles
from mednext_monai.bundles.builder import _load_yaml

ROOT = Path(__file__).resolve().parents[2]


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
    [("lr: 1e-3", "read as a string"), ("a: 1\na: 2", "duplicate"), ("a: '$@b +'", "not a Python expression")],
)
def test_source_pitfalls_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        _load_yaml(text, "train.yaml")


def test_command_line_builds_and_checks(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mednext_monai.bundles", "--check"], capture_output=True, text=True, cwd=tmp_path
    )
    installed = "site-packages" in str(Path(bundles.__file__))
    assert result.returncode == (1 if installed else 0)
    assert ("checkout" if installed else "match configs/") in result.stdout + result.stderr
