"""The pooled Dice by hand-counted arrays, its moving average over epochs, and both over several processes."""

from __future__ import annotations

import math

import ignite.distributed as idist
import pytest
import torch
import torch.multiprocessing
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from mednext_monai.handlers import MovingAverage, NonFiniteLoss, PatchValidation, PooledDice, best_metric
from mednext_monai.transforms import EpochSampler, PatchDataset

# Two batches of two patches of four voxels: prediction, label.
# Class 1: tp 1 + 2, fp 1 + 0, fn 0 + 1; class 2: tp 1 + 0, fp 0 + 1, fn 1 + 0.
BATCHES = (
    ([[1, 1, 0, 0], [2, 0, 0, 0]], [[1, 0, 0, 0], [2, 2, 0, 0]]),
    ([[1, 1, 0, 0], [0, 2, 0, 0]], [[1, 1, 1, 0], [0, 0, 0, 0]]),
)
DICE = (6 / (6 + 1 + 1) + 2 / (2 + 1 + 1)) / 2


def scores(classes, num_classes=3):
    """Return scores (B, C, 1, 2, 2) whose highest is at these classes."""
    torch.manual_seed(0)
    highest = torch.nn.functional.one_hot(torch.tensor(classes), num_classes).movedim(-1, 1)
    return (highest + 0.9 * torch.rand(highest.shape)).reshape(len(classes), num_classes, 1, 2, 2)


def labels(classes, dtype=torch.uint8):
    return torch.tensor(classes, dtype=dtype).reshape(len(classes), 1, 1, 2, 2)


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
    with pytest.raises(ValueError, match="momentum"):
        MovingAverage("dice", momentum=1.5)


def averages_of(values, average):
    """Run an engine whose metric takes these values, one an epoch; return the averages."""
    averages = []
    engine = Engine(lambda e, b: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(dice=values[e.state.epoch - 1]))
    average.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: averages.append(e.state.metrics["dice_average"]))
    engine.run([0], max_epochs=len(values))
    return averages


def test_the_moving_average_begins_with_the_first_value_and_continues_in_a_resumed_run(tmp_path):
    values = [0.5, 0.7, math.nan, 0.2]
    expected = [0.5, 0.9 * 0.5 + 0.1 * 0.7]
    expected += [expected[-1], 0.9 * expected[-1] + 0.1 * 0.2]
    assert averages_of(values, MovingAverage("dice")) == pytest.approx(expected, abs=1e-15)

    first, resumed = MovingAverage("dice"), MovingAverage("dice")
    assert averages_of(values[:2], first) == pytest.approx(expected[:2], abs=1e-15)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert averages_of(values[2:], resumed) == pytest.approx(expected[2:], abs=1e-15)


def validated(epochs):
    """Validate on patches after these epochs; return the positions drawn from the endless sequence, and the metrics."""
    data = [{"image": torch.zeros(1, 2, 2, 2), "label": torch.zeros(1, 2, 2, 2)}]
    dataset = PatchDataset(data, lambda d: {key: d[key] for key in ("image", "label")}, 2, 3)
    drawn, draw = [], dataset.draw
    dataset.draw = lambda index: (drawn.append(index), draw(index))[1]
    sampler = EpochSampler(dataset)
    network = torch.nn.Conv3d(1, 2, 1)
    torch.nn.init.constant_(network.bias, 0)
    network.bias.data[1] = 1  # everything is class 1, in the label nothing is
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=2, sampler=sampler),
        network=network,
        key_val_metric={"val_pooled_dice": PooledDice(2)},
        decollate=False,
        val_handlers=[MovingAverage("val_pooled_dice")],
    )
    trainer = Engine(lambda e, b: None)
    PatchValidation(validator, sampler).attach(trainer)
    trainer.load_state_dict({"epoch": epochs[0] - 1, "max_epochs": epochs[-1], "epoch_length": 1})
    trainer.run([0])
    return drawn, trainer.state.metrics


def test_every_epoch_has_its_own_patches_which_a_resumed_run_sees_as_well():
    whole, metrics = validated(range(1, 4))
    assert whole == list(range(18))
    assert metrics == {"val_pooled_dice": 0, "val_pooled_dice_average": 0}
    assert validated(range(2, 4))[0] == whole[6:]


@pytest.mark.parametrize(
    ("arguments", "expected"), [(("volume", 0, "dice"), "dice"), (("patches", 50, "dice"), "val_pooled_dice_average")]
)
def test_the_best_checkpoint_goes_by_volumes_or_by_patches(arguments, expected):
    assert best_metric(*arguments) == expected


def test_a_choice_of_the_best_checkpoint_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'volume' or 'patches', got 'epoch'"):
        best_metric("epoch", 50, "dice")
    with pytest.raises(ValueError, match="pseudo_dice_batches above 0"):
        best_metric("patches", 0, "dice")


def _one_process(rank, path):
    idist.initialize("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    metric = PooledDice(3)
    prediction, label = BATCHES[rank]
    metric.update((scores(prediction), labels(label)))
    value = metric.compute()

    engine = Engine(lambda e, b: None)
    engine.register_events(*IterationEvents)
    engine.state.batch = {"id": [f"case_{rank}"], "image": torch.zeros(1, 1, 2, 2, 2)}
    handler = NonFiniteLoss(f"{path}/nonfinite.pt", {})
    message, engine.state.epoch, engine.state.iteration, engine.state.epoch_length = "", 1, 1, 5
    for losses in ((1.0, 2.0), (1.0, math.nan)):
        label = torch.zeros(1, 1, 2, 2, 2)
        engine.state.output = {"image": label, "label": label, "loss": torch.tensor(losses[rank])}
        try:
            handler(engine)
        except FloatingPointError as error:
            message = str(error)
    torch.save((value, message), f"{path}/{rank}.pt")
    idist.finalize()


def test_several_processes_share_the_counts_and_stop_together(tmp_path):
    torch.multiprocessing.spawn(_one_process, (str(tmp_path),), nprocs=2)
    (dice_0, message_0), (dice_1, message_1) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert dice_0 == dice_1 == pytest.approx(DICE, abs=1e-15)
    assert "another process" in message_0
    assert "the loss is nan in epoch 1, iteration 1 of 5" in message_1 and "case_1" in message_1
    assert torch.load(tmp_path / "nonfinite.pt", weights_only=True)["cases"] == ["case_1"]
