"""Gradient clipping, checkpoints, random states and the mean loss, on a trainer of one linear layer."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from mednext_monai.handlers import (
    BestCheckpoint,
    GradientClipping,
    MeanLoss,
    RandomStates,
    TrainingCheckpoint,
    save_atomically,
)


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


@pytest.mark.parametrize(("scale", "clipped"), [(1e4, True), (1e-4, False)])
def test_the_gradient_is_clipped_to_the_norm_and_left_alone_below_it(scale, clipped):
    norms = []
    trainer, network, _ = make_trainer(1, [lambda n, o: GradientClipping(n.parameters(), o, 12.0)], scale)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: norms.append(torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()),
    )
    trainer.run()
    assert all(math.isclose(norm, 12, rel_tol=1e-5) for norm in norms) == clipped
    assert max(norms) <= 12 * (1 + 1e-5)


def test_the_gradient_is_unscaled_before_it_is_clipped():
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    handler = GradientClipping(network.parameters(), optimizer, 12.0)
    engine = Engine(lambda e, b: None)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine.scaler.scale(network(torch.ones(1, 2)).sum()).backward()
    handler(engine)
    torch.testing.assert_close(network.weight.grad, torch.ones(1, 2))


def test_mean_loss_is_the_mean_of_the_epochs_losses():
    losses = []
    trainer, _, _ = make_trainer(2, [lambda n, o: MeanLoss()])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    trainer.run()
    assert trainer.state.metrics["mean_train_loss"] == pytest.approx(sum(losses[4:]) / 4)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    save_atomically({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(Exception):  # noqa: B017 - whatever pickle raises
        save_atomically({"a": lambda: 0}, tmp_path / "a.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_best_checkpoint_is_written_when_the_metric_rises(tmp_path):
    network = torch.nn.Linear(1, 1)
    handler = BestCheckpoint(network, tmp_path / "best.pt")
    engine = Engine(lambda e, b: None)
    engine.state.key_metric_name = "dice"
    handler.attach(engine)
    written = []
    for value in (0.5, 0.4, float("nan"), 0.6):
        (tmp_path / "best.pt").unlink(missing_ok=True)
        engine.state.metrics = {"dice": value}
        handler(engine)
        written.append((tmp_path / "best.pt").is_file())
    assert written == [True, False, False, True]
    resumed = BestCheckpoint(network, tmp_path / "best.pt")
    resumed.load_state_dict(handler.state_dict())
    engine.state.metrics = {"dice": 0.55}
    (tmp_path / "best.pt").unlink()
    resumed(engine)
    assert not (tmp_path / "best.pt").exists()


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    def checkpoint(resume):
        return lambda n, o: TrainingCheckpoint(
            tmp_path / "last.pt", {"model": n, "optimizer": o}, tmp_path / "model.pt", resume=resume
        )

    whole, network, _ = make_trainer(4)
    whole.run()
    first, _, _ = make_trainer(4, [checkpoint(False)])
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: first.terminate())
    first.run()
    assert not (tmp_path / "model.pt").exists()
    second, resumed, _ = make_trainer(4, [checkpoint(True)])
    torch.nn.init.zeros_(resumed.weight)
    second.run()
    assert second.state.epoch == 4
    for one, other in zip(network.parameters(), resumed.parameters()):
        torch.testing.assert_close(one, other)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], resumed.weight)


def test_a_finished_training_is_not_resumed(tmp_path):
    def checkpoint(resume):
        return lambda n, o: TrainingCheckpoint(tmp_path / "last.pt", {"model": n, "optimizer": o}, resume=resume)

    make_trainer(2, [checkpoint(False)])[0].run()
    with pytest.raises(ValueError, match="2 epochs behind it and epochs is 2; a larger --epochs trains on"):
        make_trainer(2, [checkpoint(True)])[0].run()


def test_random_states_continue_after_a_round_trip_through_a_file(tmp_path):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random()

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    np.random.randn()  # leaves the second of a pair of normal numbers in the state
    save_atomically(RandomStates().state_dict(), tmp_path / "a.pt")
    expected = draws()
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    RandomStates(is_main_process=False).load_state_dict(state)
    assert draws() != expected
    RandomStates().load_state_dict(state)
    assert draws() == expected


def test_resuming_from_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot resume"):
        TrainingCheckpoint(str(tmp_path / "last.pt"), {}, resume=True)
