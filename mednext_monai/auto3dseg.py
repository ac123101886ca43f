"""MedNeXt as an algorithm of MONAI's Auto3DSeg, trained and run by the bundles of this package.

``AutoRunner`` takes it without a template folder::

    algos = {"mednext": {"_target_": "mednext_monai.auto3dseg.MedNeXtAlgo", "template_path": "."}}
    AutoRunner(work_dir, {"modality": "MRI", "datalist": "list.json", "dataroot": "data"}, algos=algos).run()

Source of the interface: ``monai.apps.auto3dseg.BundleAlgo`` of MONAI 1.6.1.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from . import bundles
from .bundles.commands import bundle_command, run_command
from .files import read_json, write_atomically
from .planning import plan

__all__ = ["MedNeXtAlgo"]

logger = logging.getLogger(__name__)
# Auto3DSeg's names of training parameters, and ours.
PARAMETERS = {
    "num_epochs": "epochs",
    "num_epochs_per_validation": "val_interval",
    "num_images_per_batch": "batch_size",
    "learning_rate": "learning_rate",
}


class MedNeXtAlgo(BundleAlgo):
    """
    A MedNeXt of one variant and kernel size, with the published recipe.

    Each fold becomes a bundle of the task, which is planned from the data. Training parameters are the options of
    ``mednext train``, and those names of Auto3DSeg's own algorithms that mean the same (``num_epochs``,
    ``num_epochs_per_validation``, ``num_images_per_batch``, ``learning_rate``); others of these are ignored with a
    warning. Prediction parameters are the options of ``mednext_monai.Predictor``.

    Args:
        template_path: not used; MONAI passes it.
        variant: S, B, M or L. Defaults to ``"S"``.
        kernel_size: 3 or 5. Defaults to 3.
    """

    def __init__(self, template_path: PathLike | None = None, variant: str = "S", kernel_size: int = 3) -> None:
        super().__init__(template_path)
        self.variant, self.kernel_size = variant, kernel_size
        self._predictor: Any = None

    def state_dict(self) -> dict:
        return {**super().state_dict(), "variant": self.variant, "kernel_size": self.kernel_size}

    def export_to_disk(self, output_path: str, algo_name: str, **kwargs: Any) -> None:
        """
        Plan the data set of a fold and write its bundle to ``output_path/algo_name``.

        Args:
            output_path: folder of all algorithms.
            algo_name: folder of this one.
            kwargs: ``fold``, the number of the fold; others are not used.

        Raises:
            ValueError: if the data list has no validation cases of this fold, or names two images of one case alike.
        """
        folder = Path(output_path, algo_name).absolute()
        dataset = folder.with_name(f"{algo_name}_data")
        for old in (folder, dataset):
            shutil.rmtree(old, ignore_errors=True)
        self._write_dataset(dataset, int(kwargs.get("fold", 0)))
        task, splits = dataset / "task.json", dataset / "splits.json"
        plan(dataset, task, splits=splits, report=False, progress=False)
        bundles.new_bundle(self.variant, self.kernel_size, task, folder)
        self.output_path = str(folder)

    def train(
        self, train_params: Mapping[str, Any] | None = None, device_setting: Mapping[str, Any] | None = None
    ) -> Any:
        """
        Train the bundle.

        Args:
            train_params: see the class.
            device_setting: that of ``AutoRunner``; several devices share the batch.

        Raises:
            ChildProcessError: if the training fails, after its message.
        """
        self.device_setting.update(device_setting or {})
        options, folder = self._options(train_params or {}), Path(self.output_path)
        count = int(self.device_setting["n_devices"] or 1)
        configs = ("train", "multi_gpu_train") if count > 1 else ("train",)
        command = bundle_command(folder, configs, "training", overwrite=True, **options)
        if count > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            command = [command[0], *launcher, *command[1:]]
        os.environ["CUDA_VISIBLE_DEVICES"] = str(self.device_setting["CUDA_VISIBLE_DEVICES"])
        if run_command(command, "train") != 0:
            raise ChildProcessError(f"the training of {folder} failed, as said above.")
        return subprocess.CompletedProcess(command, 0)

    def get_score(self, *args: Any, **kwargs: Any) -> float:
        """Return the mean Dice of the validation cases after the last epoch that was validated."""
        from .curves import Curves

        return float(Curves(Path(self.output_path, "eval"))("val_mean_dice")[-1].value)

    def predict(self, predict_files: Sequence, predict_params: Mapping[str, Any] | None = None) -> list[MetaTensor]:
        """
        Return the class probabilities ``(C, X, Y, Z)`` of images on their own grids.

        Args:
            predict_files: paths, or dictionaries with a path under ``"image"``.
            predict_params: options of :py:class:`mednext_monai.Predictor`; others are not used.
        """
        from .bundles.options import OPTIONS
        from .predictor import OF_FILES, Predictor

        if self._predictor is None:
            given = {
                key: value for key, value in (predict_params or {}).items() if key in OPTIONS and key not in OF_FILES
            }
            self._predictor = Predictor(self.output_path, **given)
        results = []
        for item in predict_files:
            file = item["image"] if isinstance(item, Mapping) else item
            found = self._predictor(file, probabilities=True)
            tensor = torch.from_numpy(np.moveaxis(np.asarray(found.dataobj, np.float32), -1, 0).copy())
            results.append(MetaTensor(tensor, affine=found.affine, meta={"filename_or_obj": str(file)}))
        return results

    def _options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        from .bundles.options import OPTIONS

        options = {PARAMETERS.get(name, name): value for name, value in params.items()}
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            logger.warning(f"MedNeXt has no training parameters {', '.join(unknown)}: they are ignored.")
        return {name: value for name, value in options.items() if name in OPTIONS}

    def _write_dataset(self, dataset: Path, fold: int) -> None:
        """Write the data list as a data set in Decathlon layout, whose files stay where they are."""
        source = ConfigParser.load_config_file(self.data_list_file)
        root = Path(source["dataroot"]).absolute()
        listed = [item for item in read_json(source["datalist"])["training"] if "label" in item]
        cases = [{key: str(root / item[key]) for key in ("image", "label")} for item in listed]
        ids = [Path(case["image"]).name.split(".")[0] for case in cases]
        val = [name for name, item in zip(ids, listed) if int(item.get("fold", 0)) == fold]
        if not val or len(val) == len(ids):
            raise ValueError(f"datalist: {source['datalist']} has {len(val)} of {len(ids)} cases in fold {fold}.")
        stats = ConfigParser.load_config_file(self.data_stats_files)["stats_summary"]
        classes = max(map(int, stats["label_stats"]["labels"])) + 1
        names = source.get("class_names") or []
        named = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in names]
        labels = ["background", *(named if len(named) == classes - 1 else map(str, range(1, classes)))]
        channels = int(stats["image_stats"]["channels"]["max"])
        content = {
            "name": str(source.get("name", "auto3dseg")),
            "modality": {str(number): str(source["modality"]).upper() for number in range(channels)},
            "labels": {str(value): str(name) for value, name in enumerate(labels)},
            "training": cases,
            "test": [],
        }
        splits = [{"train": [name for name in ids if name not in val], "val": val}]
        write_atomically(dataset / "dataset.json", (json.dumps(content, indent=2) + "\n").encode())
        write_atomically(dataset / "splits.json", json.dumps(splits).encode())
