"""Fixtures that several test files share: a tiny data set, and a bundle that is run on it."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.bundles import BundleRunner
from helpers.datasets import example, make_boxes, rotated_affine, save
from helpers.patches import numbered_case
from monai.bundle import ConfigWorkflow

from mednext_monai import bundles
from mednext_monai.data import store, training_cases


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those that are for one, `-m gpu`: results are those of a CPU."""
    if "gpu" not in str(config.option.markexpr).replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six training cases and one test case of 34 x 38 x 30 voxels in Decathlon layout."""
    return make_boxes(tmp_path / "Task99_Boxes")


@pytest.fixture
def run_bundle(tmp_path: Path, dataset: Path) -> BundleRunner:
    """Run ``python -m monai.bundle run`` on a copy of mednext_s_k3, far from the checkout, with a tiny network."""
    return BundleRunner(bundles.copy("mednext_s_k3", tmp_path), dataset, tmp_path)


TRAINING = {  # of `train`
    "patch_size": [32, 32, 32],
    "num_workers": 0,
    "pseudo_dice_batches": 1,
    "iterations_per_epoch": 2,
    "val_interval": 2,
    "seed": 0,
    "out_channels": 3,
    "network_def::base_channels": 4,
    "device": "cpu",
}


@pytest.fixture
def train(dataset: Path, tmp_path: Path):
    """Run a training in this process; return the network's state in the checkpoint to resume from."""
    folder = bundles.copy("mednext_s_k3", tmp_path)

    def run(name: str, **options) -> dict[str, torch.Tensor]:
        paths = {"bundle_root": str(folder), "dataset_dir": str(dataset), "ckpt_dir": str(tmp_path / name)}
        config = str(folder / "configs" / "train.json")
        workflow = ConfigWorkflow(config, workflow_type="train", **{**TRAINING, **paths, **options})
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]

    return run


@pytest.fixture
def stored(tmp_path) -> dict:
    case = numbered_case((40, 36, 30))
    np.save(tmp_path / "image.npy", case["image"])
    np.save(tmp_path / "label.npy", case["label"][None])
    np.savez(tmp_path / "foreground.npz", **{str(k): v for k, v in case["foreground"].items()})
    return {
        "image": str(tmp_path / "image.npy"),
        "label": tmp_path / "label.npy",
        "foreground": tmp_path / "foreground.npz",
    }


@pytest.fixture
def example_files(tmp_path: Path) -> dict[str, str]:
    """The example as NIfTI files with a rotated affine, units and a description in the header."""
    image, label = example()
    paths = {}
    for name, array in (("image", np.moveaxis(image, 0, -1)), ("label", label)):
        file = nibabel.Nifti1Image(array, rotated_affine())
        file.header.set_xyzt_units("mm", "sec")
        file.header["descrip"] = b"made for a test"
        file.set_qform(rotated_affine(), 1)
        paths[name] = str(tmp_path / f"{name}_1.nii.gz")
        nibabel.save(file, paths[name])
    return paths


@pytest.fixture
def images(tmp_path):
    """Write images, each of the given channels, and return their folder."""

    def make(*names: str, channels: int = 1) -> Path:
        folder = tmp_path / "images"
        for name in names:
            values = np.arange(120 * channels, dtype=np.float32).reshape(4, 5, 6, channels)
            save(folder / name, values if channels > 1 else values[..., 0])
        return folder

    return make


@pytest.fixture
def cases(dataset):
    return training_cases(dataset, "all")


@pytest.fixture
def prepared(monkeypatch) -> list[str]:
    """The ids of the cases that are preprocessed in this process, and not found in the store."""
    ids: list[str] = []
    plain = store._store
    monkeypatch.setattr(store, "_store", lambda case, *args: (ids.append(case["id"]), plain(case, *args))[1])
    return ids
