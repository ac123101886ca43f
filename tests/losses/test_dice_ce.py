"""Dice and cross-entropy of the annotated voxels against a computation by hand, and otherwise MONAI's loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DeepSupervisionLoss
from monai.losses import DiceCELoss as MonaiDiceCELoss

from mednext_monai.losses import DiceCELoss

ARGUMENTS = {"include_background": False, "to_onehot_y": True, "softmax": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
IGNORE = 3


def example(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, 3, ...) in float64 and a label of three classes, of which a third is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, size, size, size, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, size, size, size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 1 / 3] = IGNORE
    label[1][label[1] == 2] = 0  # a class in one sample only, where the two kinds of Dice differ most
    return logits, label.to(torch.uint8)


def loss_by_hand(logits: torch.Tensor, label: torch.Tensor, batch_dice: bool) -> torch.Tensor:
    """Select the annotated voxels of each sample, as lists, and compute both terms from them alone."""
    voxels = [(logits[i].flatten(1)[:, (keep := label[i, 0].flatten() != IGNORE)], label[i, 0].flatten()[keep].long())
              for i in range(len(logits))]  # fmt: skip
    entropy = torch.cat([-scores.log_softmax(0).gather(0, truth[None])[0] for scores, truth in voxels]).mean()
    sums = []
    for scores, truth in voxels:
        chance = scores.softmax(0)
        sums.append([(2 * chance[c][truth == c].sum(), chance[c].sum() + (truth == c).sum()) for c in (1, 2)])
    if batch_dice:
        sums = [[(sum(s[c][0] for s in sums), sum(s[c][1] for s in sums)) for c in (0, 1)]]
    dice = [(overlap + 1e-5) / (size + 1e-5) for sample in sums for overlap, size in sample]
    return entropy + 1 - sum(dice) / len(dice)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_loss_is_that_of_the_annotated_voxels_alone(batch_dice):
    logits, label = example()
    logits.requires_grad_()
    loss = DiceCELoss(ignore_label=IGNORE, batch=batch_dice, **ARGUMENTS)(logits, label)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = loss_by_hand(logits, label, batch_dice)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-14)
    ignored = (label == IGNORE).expand_as(logits)
    assert bool((gradient[ignored] == 0).all()) and bool((gradient[~ignored] != 0).all())


def test_what_the_network_says_about_ignored_voxels_does_not_matter():
    logits, label = example()
    other = torch.where(label == IGNORE, torch.full_like(logits, 30.0) * torch.arange(3).view(1, 3, 1, 1, 1), logits)
    loss = DiceCELoss(ignore_label=IGNORE, batch=True, **ARGUMENTS)
    assert loss(other, label).item() == loss(logits, label).item()


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("annotated", [0, 1])
def test_without_annotated_voxels_the_loss_is_zero_and_never_nan(batch_dice, annotated):
    """All samples, or all but one, have nothing annotated."""
    logits, label = example()
    label[annotated:] = IGNORE
    logits.requires_grad_()
    loss = DiceCELoss(ignore_label=IGNORE, batch=batch_dice, **ARGUMENTS)(logits, label)
    loss.backward()
    if annotated:
        expected = loss_by_hand(logits.detach(), label, batch_dice)  # an empty sample has a Dice of 1
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        assert bool(logits.grad[0].any())
    else:
        assert loss.item() == 0
    assert not bool(logits.grad[annotated:].any()) and bool(logits.grad.isfinite().all())


def test_deep_supervision_keeps_the_ignore_label_at_every_resolution():
    outputs = [example(16 // 2**level)[0] for level in range(5)]
    label = example(16)[1]
    weights = [16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31]
    loss = DeepSupervisionLoss(DiceCELoss(ignore_label=IGNORE, batch=True, **ARGUMENTS), weights=weights)
    expected = 0.0
    for level, (output, weight) in enumerate(zip(outputs, weights)):
        step = 2**level
        small = label[:, :, step // 2 :: step, step // 2 :: step, step // 2 :: step]  # nearest to the center
        part = loss_by_hand(output, small, True) if bool((small != IGNORE).any()) else 0.0
        expected += weight * float(part)
    assert loss(outputs, label).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_without_an_ignore_label_it_is_monais_loss_to_the_last_bit(batch_dice):
    logits, label = example()
    logits, label = logits.float().requires_grad_(), torch.where(label == IGNORE, 0, label)
    results = []
    for loss in (DiceCELoss(batch=batch_dice, **ARGUMENTS), MonaiDiceCELoss(batch=batch_dice, **ARGUMENTS)):
        value = loss(logits, label)
        results.append((value, torch.autograd.grad(value, logits)[0]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"softmax": True}, "softmax and to_onehot_y must be true"),
        ({**ARGUMENTS, "jaccard": True}, "jaccard cannot be set"),
        ({**ARGUMENTS, "reduction": "sum"}, "reduction cannot be set"),
    ],
)
def test_arguments_that_an_ignore_label_does_not_allow_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiceCELoss(ignore_label=IGNORE, **arguments)


def test_an_ignore_label_that_is_a_class_and_wrong_shapes_are_named():
    logits, label = example()
    with pytest.raises(ValueError, match="must not be one of the 3 classes, got 2"):
        DiceCELoss(ignore_label=2, **ARGUMENTS)(logits, label)
    with pytest.raises(ValueError, match=r"class indices \(B, 1, \*spatial\), got"):
        DiceCELoss(ignore_label=3, **ARGUMENTS)(logits, label[:, 0])
