"""A data set, trainers and commands for tests with an installed nnU-Net v2."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from helpers.datasets import describe, save
from mednext_monai.nnunet import TRAINER_FOLDER

__all__ = ["DATASET", "NnunetFolders", "needs_nnunet"]

DATASET = "Dataset901_Boxes"
AFFINE = np.array([[-1.3, 0, 0, 30], [0, 0.9, 0, -20], [0, 0, -1.1, 12], [0, 0, 0, 1]])  # 1.3 x 0.9 x 1.1 mm, flipped
SHAPE = (36, 44, 40)
TRAINERS = """
from mednext_monai.nnunet.trainer import nnUNetTrainerMedNeXt


class Short(nnUNetTrainerMedNeXt):
    def __init__(self, *, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1

    @classmethod
    def network_options(cls):
        return {"base_channels": 4}


class nnUNetTrainerMedNeXtShort_kernel3(Short):
    pass


class nnUNetTrainerMedNeXtShort_kernel5(Short):
    kernel_size = 5
"""

needs_nnunet = pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnunetv2 is not installed")


class NnunetFolders:
    """
    The folders of nnU-Net with a data set of two channels, MRI and CT, in which nonzero voxels are a small part.

    There are two trainers of tiny networks for two epochs of two steps, ``nnUNetTrainerMedNeXtShort_kernel3`` and
    ``..._kernel5``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = root / "raw", root / "preprocessed", root / "results"
        for folder in (self.raw, self.preprocessed, self.results, root / "trainers"):
            folder.mkdir()
        (root / "trainers" / "short_mednext_trainers.py").write_text(TRAINERS)
        self.images = self.raw / DATASET / "imagesTs"
        for number in range(6):
            self._write_case(number, "Ts" if number == 5 else "Tr")
        describe(
            self.raw / DATASET,
            channel_names={"0": "MRI", "1": "CT"},
            labels={"background": 0, "outer": 1, "inner": 2},
            file_ending=".nii.gz",
            numTraining=5,
        )

    def _write_case(self, number: int, section: str) -> None:
        random, label = np.random.RandomState(number), np.zeros(SHAPE, np.uint8)
        start = random.randint(9, 14, 3)
        label[tuple(slice(s, s + 14) for s in start)] = 1
        label[tuple(slice(s + 4, s + 10) for s in start)] = 2
        for channel, scale in enumerate((5, 200)):
            image = scale * (label + random.rand(*SHAPE)).astype(np.float32)
            image += 1 if channel == 0 else -300
            outside = np.ones(SHAPE, bool)
            outside[5:-4, 5:-6, 6:-4] = False
            image[outside] = 0
            image[8:14, 5:9, 8:12] = 0  # a hollow at the border of the box
            save(self.raw / DATASET / f"images{section}/case_{number}_{channel:04d}.nii.gz", image, AFFINE)
        if section == "Tr":
            save(self.raw / DATASET / f"labelsTr/case_{number}.nii.gz", label, AFFINE)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that nnU-Net and our command read."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": f"{self.root / 'trainers'}{os.pathsep}{TRAINER_FOLDER}",
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
        }

    def model(self, trainer: str, plans: str) -> Path:
        """Return the folder of a trained model."""
        return self.results / DATASET / f"{trainer}__{plans}__3d_fullres"

    def run(self, command: str, *arguments: object, fails: bool = False) -> str:
        """Run a command of nnU-Net or of this package as a user types it, and return what it prints."""
        program = Path(sys.executable).parent / command
        start = [sys.executable, "-m", "mednext_monai"] if command == "mednext" else [str(program)]
        result = subprocess.run(
            [*start, *map(str, arguments)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )
        assert (result.returncode != 0) == fails, f"{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr
