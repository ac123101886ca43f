"""Ignored voxels of a class map take no part in the metrics of foreground classes."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose

from mednext_monai.transforms import ExcludeIgnoredd

PREDICTION = torch.tensor([1, 1, 0, 2, 2, 0, 1, 2]).view(1, 2, 2, 2)
LABEL = torch.tensor([1, 0, 0, 2, 3, 3, 3, 1], dtype=torch.int16).view(1, 2, 2, 2)


def test_the_dice_of_the_other_voxels_is_left():
    transform = Compose([ExcludeIgnoredd(ignore_label=3), AsDiscreted(["pred", "label"], to_onehot=3)])
    case = transform({"pred": MetaTensor(PREDICTION), "label": MetaTensor(LABEL)})
    dice = DiceMetric(include_background=False, reduction="none")(case["pred"][None], case["label"][None])
    # annotated voxels: predictions 1 1 0 2 2, labels 1 0 0 2 1
    assert dice.tolist() == [[pytest.approx(2 * 1 / (2 + 2)), pytest.approx(2 * 1 / (2 + 1))]]


def test_without_an_ignore_label_nothing_changes():
    case = {"pred": PREDICTION, "label": LABEL}
    assert ExcludeIgnoredd()(case) == case


def test_scores_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"pred must be a class map of the label's shape \(1, 2, 2, 2\), got"):
        ExcludeIgnoredd(ignore_label=3)({"pred": torch.zeros(3, 2, 2, 2), "label": LABEL})
