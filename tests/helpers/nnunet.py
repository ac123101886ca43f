"""Plans and checkpoints as nnU-Net v2 writes them; a data set and trainers for tests with an installed nnU-Net v2."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.datasets import describe, save
from mednext_monai.nnunet import TRAINER_FOLDER

__all__ = ["DATASET", "DATASET_JSON", "NnunetFolders", "make_plans", "needs_nnunet", "write_nnunet_checkpoint"]

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

STATISTICS = {"max": 9.0, "mean": 3.0, "median": 2.0, "min": -1.0, "std": 1.5}
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}
CONFIGURATION = {  # of the planner of nnunetv2 2.8.1, with other numbers; axes are those of the transposed arrays
    "data_identifier": "nnUNetPlansMedNeXt_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [16, 32, 48],
    "median_image_size_in_voxels": [30.0, 33.0, 27.0],
    "spacing": [2.0, 1.0, 1.5],
    "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
    "use_mask_for_norm": [True, False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
    "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_stages": 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]},
        "_kw_requires_import": [],
    },
    "batch_dice": False,
}
DATASET_JSON = {
    "channel_names": {"0": "MRI", "1": "CT"},
    "labels": {"background": 0, "inner": 2, "outer": 1},
    "file_ending": ".nii.gz",
    "numTraining": 5,
}


def make_plans(backward: tuple[int, ...] = (0, 1, 2), **changes: object) -> dict:
    """Return plans for two channels whose arrays are transposed back by ``backward``, with changes of 3d_fullres."""
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlansMedNeXt",
        "original_median_spacing_after_transp": [1.1, 0.9, 1.3],
        "original_median_shape_after_transp": [30, 33, 27],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [int(axis) for axis in np.argsort(backward)],
        "transpose_backward": list(backward),
        "configurations": {"3d_fullres": copy.deepcopy(CONFIGURATION) | changes},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {**STATISTICS, "percentile_00_5": 0.0, "percentile_99_5": 8.0},
            "1": {**STATISTICS, "percentile_00_5": -0.5, "percentile_99_5": 7.5},
        },
    }


def write_nnunet_checkpoint(
    path: Path, network: torch.nn.Module, plans: dict | None = None, dataset: dict | None = None, **entries: object
) -> Path:
    """Write what ``nnUNetTrainer.save_checkpoint`` does, with the NumPy scalars that its logger collects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = {
        "plans": plans or make_plans(),
        "configuration": "3d_fullres",
        "fold": 2,
        "dataset_json": dataset or DATASET_JSON,
        "device": torch.device("cpu"),
    }
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.AdamW(network.parameters()).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice_per_class_or_region": [[np.float32(0.5)]], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": arguments,
        "trainer_name": "nnUNetTrainerMedNeXt_S_kernel3",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content | entries, path)
    return path


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
