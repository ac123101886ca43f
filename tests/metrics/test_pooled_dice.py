"""The pooled Dice on arrays that are counted by hand, in one process and in several."""

from __future__ import annotations

import math

import ignite.distributed as idist
import pytest
import torch
from helpers.processes import spawn
from monai.data import MetaTensor

from mednext_monai.metrics import PooledDice

# Two batches of two patches of four voxels: prediction, label.
# Class 1: tp 1 + 2, fp 1 + 0, fn 0 + 1; class 2: tp 1 + 0, fp 0 + 1, fn 1 + 0.
BATCHES = (
    ([[1, 1, 0, 0], [2, 0, 0, 0]], [[1, 0, 0, 0], [2, 2, 0, 0]]),
    ([[1, 1, 0, 0], [0, 2, 0, 0]], [[1, 1, 1, 0], [0, 0, 0, 0]]),
)
DICE = (6 / (6 + 1 + 1) + 2 / (2 + 1 + 1)) / 2


def scores(classes, num_classes=3, wide=False):
    """Return scores (B, C, 1, 2, 2) whose highest is at these classes."""
    torch.manual_seed(0)
    highest = torch.nn.functional.one_hot(torch.tensor(classes), num_classes).movedim(-1, 1)
    return (highest + 0.9 * torch.rand(highest.shape)).reshape(len(classes), num_classes, 1 + wide, 2, 2)


def labels(classes, dtype=torch.uint8, wide=False):
    return torch.tensor(classes, dtype=dtype).reshape(len(classes), 1, 1 + wide, 2, 2)


def test_dice_is_counted_over_all_voxels_of_all_patches_and_averaged_over_classes():
    metric = PooledDice(3)
    for prediction, label in BATCHES:
        metric.update((scores(prediction), labels(label)))
    assert metric.compute() == pytest.approx(DICE, abs=1e-15)
    metric.reset()
    prediction, label = BATCHES[0]
    metric.update((MetaTensor(scores(prediction)), MetaTensor(labels(label, torch.float32))))
    assert metric.compute() == pytest.approx((2 / 3 + 2 / 3) / 2, abs=1e-15)


def test_a_class_that_does_not_occur_is_left_out_and_one_that_is_missed_or_invented_counts_as_zero():
    metric = PooledDice(4)
    metric.update((scores([[1, 1, 0, 0]], 4), labels([[1, 1, 0, 0]])))
    assert metric.compute() == 1
    metric.update((scores([[0, 0, 0, 0]], 4), labels([[2, 0, 0, 0]])))
    assert metric.compute() == 0.5
    metric.update((scores([[3, 0, 0, 0]], 4), labels([[0, 0, 0, 0]])))
    assert metric.compute() == pytest.approx(1 / 3)
    metric.reset()
    metric.update((scores([[0, 0, 0, 0]], 4), labels([[0, 0, 0, 0]])))
    assert math.isnan(metric.compute())


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        PooledDice(1)
    with pytest.raises(ValueError, match=r"label must be in 0 ... 2, got 3"):
        PooledDice(3).update((scores([[0, 0, 0, 0]]), labels([[3, 0, 0, 0]])))
    with pytest.raises(ValueError, match=r"a prediction \(B, 3, \*spatial\)"):
        PooledDice(3).update((scores([[0, 0, 0, 0]], 2), labels([[1, 0, 0, 0]])))


def _one_process(rank, path):
    idist.initialize("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    metric = PooledDice(3)
    prediction, label = BATCHES[rank]
    metric.update((scores(prediction), labels(label)))
    torch.save(metric.compute(), f"{path}/{rank}.pt")
    idist.finalize()


def test_several_processes_share_the_counts(tmp_path):
    spawn(_one_process, str(tmp_path))
    values = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert values[0] == values[1] == pytest.approx(DICE, abs=1e-15)


def test_ignored_voxels_are_not_counted_and_other_values_are_still_refused():
    metric = PooledDice(3, ignore_label=4)
    for prediction, label in BATCHES:  # every voxel twice, once with its label and once ignored
        sparse = labels([row + [4] * 4 for row in label], wide=True)
        metric.update((scores([row + row for row in prediction], wide=True), sparse))
    assert metric.compute() == pytest.approx(DICE, abs=1e-15)
    metric.reset()
    metric.update((scores(BATCHES[0][0]), labels([[4] * 4] * 2)))
    assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match=r"label must be in 0 ... 2, got 3"):
        metric.update((scores([[0, 0, 0, 0]]), labels([[3, 4, 0, 0]])))
    with pytest.raises(ValueError, match="ignore_label must not be one of the 3 classes, got 2"):
        PooledDice(3, ignore_label=2)
