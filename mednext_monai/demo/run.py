"""The run behind ``mednext demo``: data set, training, UpKern, evaluation and inference in a few minutes.

Each step is a separate ``python -m monai.bundle run`` command, which is printed before it starts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from .. import bundles
from ..bundles.commands import bundle_command
from .pretrained import Segmentation, segment_with_released_weights
from .steps import run_step

__all__ = ["DemoResult", "run_demo"]

FLAG = "True"  # python-fire's value of an option without one
METRIC = "val_mean_dice"
LOG_INTERVAL = 5  # iterations between two lines about the loss
PICTURE_WIDTH = 640  # pixels


class DemoResult(NamedTuple):
    """Dice averaged over classes and cases, and the files written."""

    dice_k3: dict[int, float]  # by epoch, on the validation cases at 1 mm
    dice_k5: dict[int, float]
    dice_evaluation: float  # of the k5 network, on the validation cases' original grids
    dice_test: dict[str, float]  # of the k5 network, by test case
    predictions: list[Path]
    overlays: list[Path]


def run_demo(
    output_dir: str = "mednext_demo",
    pretrained: str | None = None,
    epochs: int = 4,
    iterations_per_epoch: int = 20,
    upkern_epochs: int = 2,
    upkern_iterations: int = 6,
    patch_size: int = 48,
    batch_size: int = 2,
    learning_rate: float = 0.001,
    seed: int = 0,
) -> DemoResult | Segmentation:
    """
    Train, evaluate and segment on a small synthetic data set; or segment with released weights.

    Writes a data set, trains mednext_s_k3 for a few minutes on two CPU cores, initializes mednext_s_k5 from it with
    UpKern and trains it briefly, evaluates it, segments the test scans and draws the results. Prints the commands that
    it runs. The output folder holds the logs, bundles, predictions (NIfTI) and pictures (PNG).

    With --pretrained, nothing is trained: the released weights of mednext_s_k3 segment an image in seconds.

    Args:
        output_dir: output folder; it must be empty or not exist.
        pretrained: an MR of a hippocampus, or without a value a synthetic one.
        epochs: epochs of mednext_s_k3, each followed by a validation.
        iterations_per_epoch: training iterations per epoch.
        upkern_epochs: epochs of mednext_s_k5.
        upkern_iterations: training iterations per epoch of mednext_s_k5.
        patch_size: edge of the training patches in voxels, a multiple of 16.
        batch_size: patches per iteration.
        learning_rate: learning rate of AdamW.
        seed: random seed of the data set and the training.

    Raises:
        FileExistsError: if the output folder is not empty.
        ValueError: if the patch size is not a multiple of 16.
        FileNotFoundError: if there is no such image.
        ChildProcessError: if a step fails, with its command and the end of its log.
    """
    started, root = time.monotonic(), Path(output_dir)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"output_dir must be empty or not exist, but {root} does not; remove it or name another.")
    if pretrained is not None:
        return segment_with_released_weights(None if pretrained == FLAG else pretrained, root, seed)
    from ..networks import SHAPE_FACTOR  # imports torch

    if patch_size < SHAPE_FACTOR or patch_size % SHAPE_FACTOR:
        raise ValueError(f"patch_size must be a multiple of {SHAPE_FACTOR}, got {patch_size}.")
    dataset, k3, k5 = _prepare(root, seed)
    task = {"dataset_dir": dataset, "out_channels": 4, "patch_size": [patch_size] * 3, "num_workers": 0}
    training = {**task, "batch_size": batch_size, "learning_rate": learning_rate, "val_interval": 1, "seed": seed}
    training.update(log_interval=LOG_INTERVAL, pseudo_dice_batches=4)

    logs = root / "logs"
    command = bundle_command(k3, epochs=epochs, iterations_per_epoch=iterations_per_epoch, **training)
    dice_k3 = _train("Train mednext_s_k3", command, logs / "1_train_k3.log", k3)
    upkern = {"epochs": upkern_epochs, "iterations_per_epoch": upkern_iterations}
    command = bundle_command(k5, **upkern, upkern_checkpoint=k3 / "models" / "model.pt", **training)
    dice_k5 = _train("Train mednext_s_k5 from it (UpKern)", command, logs / "2_train_k5.log", k5)
    command = bundle_command(k5, ("train", "evaluate"), "evaluating", **{**task, "validate::inferer::mirror": False})
    run_step("Evaluate it", command, logs / "3_evaluate.log")
    dice_evaluation = _read_dice(k5 / "eval" / "metrics.json")
    command = bundle_command(k5, ("inference",), "inferring", output_dir=root / "predictions", mirror=False, **task)
    run_step("Segment the test scans", command, logs / "4_inference.log")

    result = DemoResult(dice_k3, dice_k5, dice_evaluation, *_judge(dataset, root))
    print(_summary(result, root, time.monotonic() - started), flush=True)
    return result


def _prepare(root: Path, seed: int) -> tuple[Path, Path, Path]:
    """Write the data set and copy the two bundles; return the three folders."""
    from .synthetic import write_dataset

    (root / "logs").mkdir(parents=True, exist_ok=True)
    dataset = write_dataset(root / "dataset", seed=seed)
    print(f"Wrote a synthetic data set: {dataset}", flush=True)
    k3, k5 = (bundles.copy(name, root) for name in ("mednext_s_k3", "mednext_s_k5"))
    print(f"Copied two bundles: {k3}, {k5}", flush=True)
    return dataset, k3, k5


def _train(title: str, command: list[str], log: Path, bundle: Path) -> dict[int, float]:
    """Run a training, show its loss and validation Dice, and return the Dice by epoch."""
    from ..curves import Curves  # slow to import

    curves = Curves(bundle / "eval")

    def progress() -> list[str]:
        losses = [point for point in curves("train_loss") if point.step % LOG_INTERVAL == 0]
        lines = [(point.wall_time, f"iteration {point.step}: loss {point.value:.3f}") for point in losses]
        lines += [
            (point.wall_time, f"epoch {point.step}: validation Dice {point.value:.3f}") for point in curves(METRIC)
        ]
        return [text for _, text in sorted(lines)]

    run_step(title, command, log, progress)
    return {point.step: point.value for point in curves(METRIC)}


def _read_dice(path: Path) -> float:
    """Return the mean Dice over classes from the statistics of an evaluation."""
    return float(json.loads(path.read_text(encoding="utf-8"))["mean_over_classes"]["dice"])


def _judge(dataset: Path, root: Path) -> tuple[dict[str, float], list[Path], list[Path]]:
    """Compare the predictions with the reference and draw them; return Dice by case, predictions and pictures."""
    from ..pictures import save_overlay
    from .synthetic import LABELS

    dice, predictions, overlays = {}, [], []
    for image in sorted((dataset / "imagesTs").glob("*.nii.gz")):
        prediction, reference = root / "predictions" / image.name, dataset / "labelsTs" / image.name
        case = image.name.removesuffix(".nii.gz")
        dice[case] = _mean_dice(prediction, reference, sorted(set(LABELS) - {0}))
        predictions.append(prediction)
        overlay = root / "overlays" / f"{case}.png"
        overlays.append(save_overlay(image, prediction, overlay, reference, LABELS, PICTURE_WIDTH))
    return dice, predictions, overlays


def _mean_dice(prediction: Path, reference: Path, classes: list[int]) -> float:
    """Return the Dice of two segmentations on the same grid, averaged over classes."""
    import numpy as np

    from ..data.io import read_label

    (found, affine), (truth, expected_affine) = read_label(prediction), read_label(reference)
    if found.shape != truth.shape or not np.allclose(affine, expected_affine, atol=1e-3):
        raise ValueError(f"{prediction} must be on the grid of {reference}, got shapes {found.shape}, {truth.shape}.")
    overlaps = [2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()) for c in classes]
    return float(np.mean(overlaps))


def _summary(result: DemoResult, root: Path, seconds: float) -> str:
    def by_epoch(dice: dict[int, float]) -> str:
        return ", ".join(f"{value:.3f}" for value in dice.values())

    return "\n".join(
        [
            f"\nFinished in {seconds / 60:.1f} min. Mean Dice of three structures:",
            f"  mednext_s_k3, validation after each epoch:               {by_epoch(result.dice_k3)}",
            f"  mednext_s_k5 initialized with UpKern, after each epoch:  {by_epoch(result.dice_k5)}",
            f"  mednext_s_k5, evaluated on the scans' original grids:    {result.dice_evaluation:.3f}",
            f"  mednext_s_k5, test scans:                                {by_epoch(result.dice_test)}",
            f"Predictions, on the grids of the scans: {root / 'predictions'}",
            f"Pictures: {', '.join(map(str, result.overlays))}",
            f"Trained bundles: {root / 'mednext_s_k3'}, {root / 'mednext_s_k5'}",
            f"Logs: {root / 'logs'}",
        ]
    )
