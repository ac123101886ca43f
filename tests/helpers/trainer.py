"""A trainer of one linear layer, for tests of handlers."""

from __future__ import annotations

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

__all__ = ["Scaler", "make_trainer"]


class Scaler:
    """A handler that gives a trainer its gradient scaler, as MONAI's does at the start of a run."""

    def __init__(self, scale: float | None, device: str = "cpu") -> None:
        self.scale, self.device = scale, device

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine) -> None:
        engine.scaler = None if self.scale is None else torch.amp.GradScaler(self.device, init_scale=self.scale)


def make_trainer(epochs=2, handlers=(), scale=1.0, device="cpu", amp=False):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    data = [{"image": torch.full((1, 3), float(i + 1)), "label": torch.zeros(1, 1)} for i in range(4)]
    trainer = SupervisedTrainer(
        device=torch.device(device),
        max_epochs=epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=lambda y, t: scale * (y - t).square().mean(),
        decollate=False,
        amp=amp,
    )
    for make in handlers:
        make(network, optimizer).attach(trainer)
    return trainer, network, optimizer
