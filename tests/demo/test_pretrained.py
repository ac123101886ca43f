"""Promises of ``mednext demo --pretrained``: the released weights segment an image in seconds, without a training."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mednext_monai import bundles
from mednext_monai.cli import main
from mednext_monai.demo.synthetic import make_hippocampus, write_volume

needs_weights = pytest.mark.skipif(
    not bundles.has_weights(bundles.path("mednext_s_k3")), reason="the bundle has no weights in this checkout"
)


def test_the_synthetic_hippocampus_is_the_same_every_time_and_has_both_parts():
    image, label, affine = make_hippocampus(np.random.default_rng(0))
    again, _, _ = make_hippocampus(np.random.default_rng(0))
    assert image.shape == label.shape == (35, 50, 36) and image.dtype == np.int16
    assert np.array_equal(image, again) and not np.array_equal(image, make_hippocampus(np.random.default_rng(1))[0])
    assert np.array_equal(affine, np.eye(4))
    assert all(1000 < (label == value).sum() < 3000 for value in (1, 2))
    assert (np.argwhere(label == 1).mean(0) - np.argwhere(label == 2).mean(0))[1] > 10  # anterior is in front


@needs_weights
def test_the_documented_command_segments_a_synthetic_image(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--pretrained"]) == 0
    screen = capfd.readouterr().out
    root = tmp_path / "mednext_demo"
    assert re.search(r"Anterior: \d\.\d\d ml\n  Posterior: \d\.\d\d ml", screen)
    found = np.asarray(nib.load(root / "predictions" / "hippocampus.nii.gz").dataobj)
    truth = np.asarray(nib.load(root / "reference" / "hippocampus.nii.gz").dataobj)
    for value in (1, 2):
        both = 2 * ((found == value) & (truth == value)).sum()
        assert both / ((found == value).sum() + (truth == value).sum()) > 0.5  # simple shapes, no anatomy
    assert Image.open(root / "overlays" / "hippocampus.png").width <= 640


@needs_weights
def test_an_image_of_the_user_is_segmented_on_its_own_grid_and_a_large_one_gets_a_note(tmp_path, capfd):
    image, _, _ = make_hippocampus(np.random.default_rng(2))
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    write_volume(image, affine, tmp_path / "mine.nii.gz")
    assert main(["demo", "--pretrained", str(tmp_path / "mine.nii.gz"), "--output_dir", str(tmp_path / "out")]) == 0
    assert "Note: the image is 105 x 150 x 108 mm" in capfd.readouterr().out
    result = nib.load(tmp_path / "out" / "predictions" / "mine.nii.gz")
    assert result.shape == image.shape and np.array_equal(result.affine, affine)


@needs_weights
def test_a_missing_image_and_a_folder_in_use_are_refused(tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    assert main(["demo", "--pretrained", str(tmp_path / "none.nii.gz"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "pretrained: there is no file" in capsys.readouterr().err.splitlines()[-1]
    assert main(["demo", "--pretrained", "--output_dir", str(tmp_path / "used")]) == 1
    assert "output_dir must be empty or not exist" in capsys.readouterr().err.splitlines()[-1]


def test_an_installation_without_the_weights_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mednext_monai.demo.pretrained.BUNDLE", "mednext_m_k3")
    assert main(["demo", "--pretrained", "--output_dir", str(tmp_path / "out")]) == 1
    assert "mednext_m_k3 has no weights" in capsys.readouterr().err
