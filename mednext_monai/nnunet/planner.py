"""A plans file for nnU-Net v2 with the published settings: 1 mm, patches of 128³ voxels, batch size 2.

Everything else is decided by nnU-Net's ``ExperimentPlanner``: normalization, order of axes, whether the Dice is that of
the batch. As in the authors' planner, the last follows from the patch that is used: if the median volume is more than
four times as large, there would be a second stage, and the Dice is that of the batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from ..files import json_object, write_atomically
from ..networks.mednext import SHAPE_FACTOR

__all__ = ["PLANS_NAME", "Planned", "plan"]

PLANS_NAME = "nnUNetPlansMedNeXt"
SPACING = (1.0, 1.0, 1.0)  # mm
CONFIGURATION = "3d_fullres"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed")  # environment variables
KNOWN = "mednext_monai"  # key by which a plans file of this module is recognized


class Planned(NamedTuple):
    """A plans file, and what its user types next."""

    path: Path
    dataset_id: int
    plans_name: str


def plan(
    dataset: str | int,
    plans_name: str = PLANS_NAME,
    patch_size: int = 128,
    batch_size: int = 2,
    processes: int | None = None,
    overwrite: bool = False,
) -> Planned:
    """
    Write a plans file for ``3d_fullres`` beside those of nnU-Net, which it does not change.

    The fingerprint of the data set is computed if nnU-Net has not done so.

    Args:
        dataset: id or name of a data set in ``nnUNet_raw``, such as 4 or ``Dataset004_Hippocampus``.
        plans_name: name of the file without ``.json``, for ``-p``. Defaults to ``"nnUNetPlansMedNeXt"``.
        patch_size: edge of the patches in voxels, a multiple of 16. Defaults to 128.
        batch_size: patches per step. Defaults to 2.
        processes: processes that read images. Defaults to ``None``: one per core.
        overwrite: whether to replace a plans file that this function did not write. Defaults to ``False``.

    Raises:
        ValueError: if an environment variable of nnU-Net is not set, there is no such data set, an argument is invalid,
            the data set is 2D, the file exists and is not ours, or nnU-Net fails, with its error.
    """
    if patch_size < SHAPE_FACTOR or patch_size % SHAPE_FACTOR:
        raise ValueError(f"patch_size must be a positive multiple of {SHAPE_FACTOR}, got {patch_size}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    name = _dataset_name(dataset)
    target = Path(os.environ["nnUNet_preprocessed"], name, f"{plans_name}.json")
    if Path(plans_name).name != plans_name or not plans_name:
        raise ValueError(f"plans_name must be a name without a folder, got {plans_name!r}.")
    if target.exists() and KNOWN not in json_object(target) and not overwrite:
        raise ValueError(
            f"{target} exists and is not of this command; choose another --plans_name or --overwrite true."
        )
    dataset_id, count = convert_dataset_name_to_id(name), processes or os.cpu_count() or 1
    try:
        if not target.with_name("dataset_fingerprint.json").is_file():
            extract_fingerprint_dataset(dataset_id, num_processes=count)
        shapes = json_object(target.with_name("dataset_fingerprint.json")).get("shapes_after_crop", [])
        if shapes and all(1 in shape for shape in shapes):
            raise ValueError(f"{name} has images of one slice only; the published MedNeXt is 3D.")
        with _with_workers():
            plans = _Planner(patch_size, batch_size, name, plans_name).plan_experiment()
    except (AssertionError, KeyError, RuntimeError) as error:
        raise ValueError(f"nnU-Net cannot plan {name}: {error!r}.") from error
    write_atomically(target, (json.dumps(plans, indent=4) + "\n").encode())
    return Planned(target, dataset_id, plans_name)


class _Planner(ExperimentPlanner):
    """nnU-Net's planner with another patch and batch size, which writes nothing but ``dataset.json``."""

    def __init__(self, edge: int, batch_size: int, dataset: str, plans_name: str) -> None:
        super().__init__(dataset, plans_name=plans_name, overwrite_target_spacing=list(SPACING))
        self.edge = edge
        self.batch_size = batch_size

    def get_plans_for_configuration(self, spacing: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Any]:
        plan: dict[str, Any] = super().get_plans_for_configuration(spacing, *args, **kwargs)
        if len(spacing) != 3:
            return plan
        plan |= {"patch_size": [self.edge] * 3, "batch_size": self.batch_size}
        # nnU-Net's own network for this patch, so that its trainers can be compared with the same plans
        patch = [self.edge] * 3
        _, strides, kernels, *_ = get_pool_and_conv_props(spacing, patch, self.UNet_featuremap_min_edge_length, 999999)
        stages = len(strides)
        features = [min(self.UNet_max_features_3d, self.UNet_base_num_features * 2**i) for i in range(stages)]
        plan["architecture"]["arch_kwargs"] |= {
            "n_stages": stages,
            "features_per_stage": features,
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": self.UNet_blocks_per_stage_encoder[:stages],
            "n_conv_per_stage_decoder": self.UNet_blocks_per_stage_decoder[: stages - 1],
        }
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Complete the plans, which :py:func:`plan` writes: only the published configuration stays."""
        configurations = plans["configurations"]
        plans["configurations"] = {key: configurations[key] for key in configurations if key == CONFIGURATION}
        for configuration in plans["configurations"].values():
            configuration.pop("next_stage", None)
        plans["experiment_planner_used"] = ExperimentPlanner.__name__  # nnU-Net finds no class of another package
        plans[KNOWN] = {"patch_size": self.edge, "batch_size": self.batch_size, "spacing": list(SPACING)}
        recursive_fix_for_json_export(plans)


@contextmanager
def _with_workers() -> Iterator[None]:
    """Change nnUNet_n_proc_DA if it is 0, which trains without processes but ends nnU-Net's planner with an error."""
    before = os.environ.get("nnUNet_n_proc_DA")
    if before == "0":
        os.environ["nnUNet_n_proc_DA"] = "1"
    try:
        yield
    finally:
        if before is not None:
            os.environ["nnUNet_n_proc_DA"] = before


def _dataset_name(dataset: str | int) -> str:
    missing = [variable for variable in FOLDERS if not os.environ.get(variable)]
    if missing:
        raise ValueError(f"the environment variable {missing[0]} is not set; nnU-Net needs it, naming a folder.")
    text = str(dataset)
    if not text.isdecimal() and not text.startswith("Dataset"):
        raise ValueError(
            f"the data set must be an id such as 4 or a name such as Dataset004_Hippocampus, got {text!r}."
        )
    try:
        name = str(maybe_convert_to_dataset_name(int(text) if text.isdecimal() else text))
    except RuntimeError as error:
        raise ValueError(f"{os.environ['nnUNet_raw']} has no single data set {text}: {error}") from error
    if not Path(os.environ["nnUNet_raw"], name, "dataset.json").is_file():
        raise ValueError(f"{Path(os.environ['nnUNet_raw'], name)} has no dataset.json.")
    return name
