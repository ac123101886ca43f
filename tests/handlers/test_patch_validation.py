"""Validation on patches: each epoch has its own, and its metrics are the trainer's."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator

from mednext_monai.data.patches import EpochSampler, PatchDataset
from mednext_monai.handlers import MovingAverage, PatchValidation
from mednext_monai.metrics import PooledDice


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
