"""A trainer of one linear layer, for tests of handlers."""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer

__all__ = ["make_trainer"]


def make_trainer(epochs=2, handlers=(), scale=1.0):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    data = [{"image": torch.full((1, 3), float(i + 1)), "label": torch.zeros(1, 1)} for i in range(4)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=lambda y, t: scale * (y - t).square().mean(),
        decollate=False,
    )
    for make in handlers:
        make(network, optimizer).attach(trainer)
    return trainer, network, optimizer
