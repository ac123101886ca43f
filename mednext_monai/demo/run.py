"""The run behind ``mednext demo``: from nothing to segmented scans, through the commands that a user would type.

Every step is a ``python -m monai.bundle run`` of its own, printed as it is started; nothing is done behind their back.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import bundles

__all__ = ["DemoResult", "bundle_command", "run_demo"]

DICE = re.compile(r"Epoch\[(\d+)\] Metrics -- .*val_mean_dice: ([0-9.]+|nan)")
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (?:- )?(?P<level>[A-Z]+)(?: \S+)? - (?P<message>.*)$")
NOISE = re.compile(  # lines of MONAI and ignite that say nothing new; the log files have them
    r"UserWarning: parsing config_file|workflow = create_workflow\(|Setting logging properties|input summary of"
    r"|^(> \w|---|Engine run|Got new best metric|Key metric:|Epoch\[\d+\] Complete|\s*$)"
)
# On Linux: the C library keeps memory instead of returning it to the system after every operation, which costs half the
# time, and threads that wait leave the core to others.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "OMP_WAIT_POLICY": "PASSIVE"}


class DemoResult(NamedTuple):
    """What came out: Dice averaged over classes and cases, and where the files are."""

    dice_k3: dict[int, float]  # by epoch, on the validation cases at 1 mm
    dice_k5: dict[int, float]
    dice_evaluation: float  # of the k5 network on the validation cases' own grid
    dice_test: dict[str, float]  # by case, of the k5 network
    predictions: list[Path]
    overlays: list[Path]


def run_demo(
    output_dir: str = "mednext_demo",
    epochs: int = 4,
    iterations_per_epoch: int = 20,
    upkern_epochs: int = 2,
    upkern_iterations: int = 6,
    patch_size: int = 48,
    batch_size: int = 2,
    learning_rate: float = 0.001,
    seed: int = 0,
) -> DemoResult:
    """
    Train, evaluate and segment on a small synthetic data set.

    Makes the data set, trains mednext_s_k3 for a few minutes on two CPU cores, starts mednext_s_k5 from it with UpKern
    and trains that for a few steps more, evaluates it, segments the test scans and draws them. Prints the commands
    that it runs; logs, bundles, predictions (NIfTI) and pictures (PNG) are in the folder afterwards.

    Args:
        output_dir: the folder to write to; it must not exist or be empty.
        epochs: epochs of mednext_s_k3; each ends with a validation.
        iterations_per_epoch: training steps in each.
        upkern_epochs: epochs of mednext_s_k5.
        upkern_iterations: training steps in each.
        patch_size: edge of the training patches in voxels, a multiple of 16.
        batch_size: patches a step.
        learning_rate: of AdamW.
        seed: of the data and the training.

    Raises:
        FileExistsError: when the folder holds something.
        ValueError: when the patch size is no multiple of 16.
        ChildProcessError: when a step fails, with its command and its log file.
    """
    started, root = time.monotonic(), Path(output_dir)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists already and is not an empty folder; remove it or name another one.")
    if patch_size < 16 or patch_size % 16:
        raise ValueError(f"patch_size must be a multiple of 16, got {patch_size}.")
    dataset, k3, k5 = _prepare(root, seed)
    task = {"dataset_dir": dataset, "out_channels": 4, "patch_size": [patch_size] * 3, "num_workers": 0}
    training = {**task, "batch_size": batch_size, "learning_rate": learning_rate, "val_interval": 1, "seed": seed}
    training.update(log_interval=5, pseudo_dice_batches=4)

    command = bundle_command(k3, epochs=epochs, iterations_per_epoch=iterations_per_epoch, **training)
    dice_k3 = _run_step("Train mednext_s_k3", command, root / "logs" / "1_train_k3.log")
    command = bundle_command(
        k5,
        epochs=upkern_epochs,
        iterations_per_epoch=upkern_iterations,
        upkern_checkpoint=k3 / "models" / "model.pt",
        **training,
    )
    dice_k5 = _run_step("Train mednext_s_k5 from it (UpKern)", command, root / "logs" / "2_train_k5.log")
    command = bundle_command(k5, ("train", "evaluate"), "evaluating", **{**task, "validate::inferer::mirror": False})
    evaluation = _run_step("Evaluate it", command, root / "logs" / "3_evaluate.log")
    predictions = root / "predictions"
    command = bundle_command(k5, ("inference",), "inferring", output_dir=predictions, mirror=False, **task)
    _run_step("Segment the test scans", command, root / "logs" / "4_inference.log")

    result = DemoResult(dice_k3, dice_k5, next(iter(evaluation.values()), float("nan")), *_judge(dataset, root))
    print(_summary(result, root, time.monotonic() - started), flush=True)
    return result


def bundle_command(
    bundle: Path, configs: Sequence[str] = ("train",), run_id: str = "training", **overrides: object
) -> list[str]:
    """
    Return the ``python -m monai.bundle`` command that runs a bundle.

    Args:
        bundle: the bundle's folder.
        configs: names of the files in its ``configs/``, without ``.json``; later ones override.
        run_id: what to run in them.
        overrides: keys of the config and their values.
    """
    files = [str(bundle / "configs" / f"{config}.json") for config in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id]
    command += ["--config_file", files[0] if len(files) == 1 else json.dumps(files), "--bundle_root", str(bundle)]
    for key, value in overrides.items():
        text = str(value) if isinstance(value, (str, Path)) else repr(value)
        command += [f"--{key}", text.replace(" ", "") if isinstance(value, list) else text]
    return command


def _prepare(root: Path, seed: int) -> tuple[Path, Path, Path]:
    """Write the data set and copy the bundles; return the three folders."""
    from .synthetic import write_dataset

    (root / "logs").mkdir(parents=True, exist_ok=True)
    dataset = write_dataset(root / "dataset", seed=seed)
    print(f"Wrote a synthetic data set: {dataset}", flush=True)
    k3, k5 = (bundles.copy(name, root) for name in ("mednext_s_k3", "mednext_s_k5"))
    print(f"Copied two bundles: {k3}, {k5}", flush=True)
    return dataset, k3, k5


def _run_step(title: str, command: list[str], log: Path) -> dict[int, float]:
    """Run a command, its output on the screen and in a file, and return the mean Dice by epoch that it reports."""
    print(f"\n{title}\n$ {shlex.join(command)}", flush=True)
    started, dice = time.monotonic(), {}
    environment = {**ENVIRONMENT, **os.environ, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with open(log, "w") as file, subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if match := DICE.search(line):
                    dice[int(match[1])] = float(match[2])
                if (text := _screen_text(line)) is not None:
                    print(f"  {text}", flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ChildProcessError(
            f"{title}: ended with exit status {process.returncode}.\ncommand: {shlex.join(command)}\nlog: {log}"
        )
    print(f"  done in {time.monotonic() - started:.0f} s; log: {log}", flush=True)
    return dice


def _screen_text(line: str) -> str | None:
    """Return what of a line of a child's output is shown, or ``None`` for noise."""
    match = LOG_LINE.match(line)
    text = match["message"] if match else line.rstrip()
    if NOISE.search(text):
        return None
    return f"{match['level']} {text}" if match and match["level"] != "INFO" else text


def _judge(dataset: Path, root: Path) -> tuple[dict[str, float], list[Path], list[Path]]:
    """Compare the predictions with the truth and draw them; return Dice by case, predictions and pictures."""
    from ..overlay import save_overlay
    from .synthetic import LABELS

    dice, predictions, overlays = {}, [], []
    for image in sorted((dataset / "imagesTs").glob("*.nii.gz")):
        prediction, reference = root / "predictions" / image.name, dataset / "labelsTs" / image.name
        case = image.name.removesuffix(".nii.gz")
        dice[case] = _mean_dice(prediction, reference, image, sorted(set(LABELS) - {0}))
        predictions.append(prediction)
        overlays.append(save_overlay(image, prediction, root / "overlays" / f"{case}.png", reference, LABELS))
    return dice, predictions, overlays


def _mean_dice(prediction: Path, reference: Path, image: Path, classes: list[int]) -> float:
    """Return the Dice of two segmentations averaged over classes, having seen that the grid is the image's."""
    import nibabel as nib
    import numpy as np

    files = [nib.load(path) for path in (prediction, reference, image)]
    if files[0].shape != files[2].shape or not np.allclose(files[0].affine, files[2].affine, atol=1e-3):
        raise ValueError(f"{prediction} is not on the grid of {image}: {files[0].shape} and {files[2].shape}.")
    found, truth = (np.asanyarray(file.dataobj) for file in files[:2])
    overlaps = [2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()) for c in classes]
    return float(np.mean(overlaps))


def _summary(result: DemoResult, root: Path, seconds: float) -> str:
    def by_epoch(dice: dict[int, float]) -> str:
        return ", ".join(f"{value:.3f}" for value in dice.values())

    return "\n".join(
        [
            f"\nFinished in {seconds / 60:.1f} min. Mean Dice of three structures:",
            f"  mednext_s_k3, validation after each epoch:               {by_epoch(result.dice_k3)}",
            f"  mednext_s_k5 started with UpKern, after each epoch:      {by_epoch(result.dice_k5)}",
            f"  mednext_s_k5, evaluated on the scans' own grids:         {result.dice_evaluation:.3f}",
            f"  mednext_s_k5, test scans:                                {by_epoch(result.dice_test)}",
            f"Predictions, on the grid of their scans: {root / 'predictions'}",
            f"Pictures: {', '.join(map(str, result.overlays))}",
            f"Trained bundles: {root / 'mednext_s_k3'}, {root / 'mednext_s_k5'}",
            f"Logs: {root / 'logs'}",
        ]
    )
