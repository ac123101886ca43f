"""Fixtures that several test files share: a tiny data set, and running a bundle as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednext_monai import bundles

AFFINE = np.array([[-1.1, 0.1, 0, 30], [0.1, 0.9, 0.05, -20], [0, 0, 1.3, 12], [0, 0, 0, 1]])
SHAPE = (34, 38, 30)
TINY = [
    "--patch_size",
    "[32,32,32]",
    "--network_def::base_channels",
    "4",
    "--num_workers",
    "0",
    "--seed",
    "0",
    "--pseudo_dice_batches",
    "2",
]


SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def kill_as_soon_as(file: Path, process: subprocess.Popen) -> None:
    """SIGKILL the process when the file is there, which must come before its end."""
    try:
        while not file.is_file() and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, f"the process ended by itself, {file.name} there: {file.is_file()}"
    finally:
        process.kill()
        process.wait()


def write_case(folder: Path, name: str, seed: int, labelled: bool = True) -> None:
    """Write an image with a bright box (class 1) and, inside it, a brighter one (class 2)."""
    label = np.zeros(SHAPE, np.uint8)
    start = np.random.RandomState(seed).randint(4, 12, 3)
    label[tuple(slice(s, s + 14) for s in start)] = 1
    label[tuple(slice(s + 4, s + 10) for s in start)] = 2
    image = 10 + 5 * label + np.random.RandomState(seed + 100).randn(*SHAPE)
    for part, values in (("images", image.astype(np.float32)), ("labels", label))[: 2 if labelled else 1]:
        target = folder / (part + ("Tr" if labelled else "Ts"))
        target.mkdir(exist_ok=True, parents=True)
        nib.save(nib.Nifti1Image(values, AFFINE), target / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six training cases and one test case of 34 x 38 x 30 voxels in Decathlon layout."""
    folder = tmp_path / "Task99_Boxes"
    names = [f"box_{i}" for i in range(6)]
    for i, name in enumerate(names):
        write_case(folder, name, i)
    write_case(folder, "box_9", 9, labelled=False)
    content = {
        "name": "Boxes",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "outer", "2": "inner"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/box_9.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run_bundle(tmp_path: Path, dataset: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python -m monai.bundle run`` on a copy of mednext_s_k3, far from the checkout, with a tiny network."""
    bundle = bundles.copy("mednext_s_k3", tmp_path)

    def run(
        run_id: str,
        *configs: str,
        options: tuple[str, ...] = (),
        launcher: tuple[str, ...] = (),
        check: bool = True,
        overlay: Path | None = None,
        kill_when: Path | None = None,
    ) -> subprocess.CompletedProcess | None:
        paths = [bundle / "configs" / f"{name}.json" for name in configs] + [overlay] * (overlay is not None)
        files = "[" + ",".join(f"'{path}'" for path in paths) + "]"
        command = [sys.executable, *(launcher or ("-m",)), "monai.bundle", "run", run_id, "--config_file", files]
        command += ["--bundle_root", str(bundle), "--dataset_dir", str(dataset), "--out_channels", "3", *TINY, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if kill_when is not None:
            return kill_as_soon_as(kill_when, subprocess.Popen(command, cwd=tmp_path, env=environment, **SILENT))
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result

    run.bundle = bundle
    return run
