"""A resumed training: ends where an uninterrupted one does, or says why it cannot be resumed."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.trainer import make_trainer
from ignite.engine import Events
from monai.handlers import LrScheduleHandler

from mednext_monai.handlers import TrainingCheckpoint


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
    with pytest.raises(ValueError, match="it has completed 2 epochs and epochs is 2; a larger --epochs continues"):
        make_trainer(2, [checkpoint(True)])[0].run()


def test_resuming_from_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot resume"):
        TrainingCheckpoint(str(tmp_path / "last.pt"), {}, resume=True)


def test_a_truncated_or_foreign_checkpoint_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "last.pt"

    def checkpoint(n, o):
        return TrainingCheckpoint(path, {"model": n, "optimizer": o}, resume=True)

    make_trainer(1, [lambda n, o: TrainingCheckpoint(path, {"model": n, "optimizer": o})])[0].run()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=re.escape(f"{path} cannot be read: it is truncated, corrupt or not a PyTorch")
    ):
        make_trainer(2, [checkpoint])[0].run()
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match=re.escape(f"cannot resume from {path}: it lacks ['optimizer', 'trainer']")):
        make_trainer(2, [checkpoint])[0].run()


def scheduled_trainer(path, epochs, lr, total, length=4, **options):
    """A trainer with a polynomial schedule, and what it holds."""
    made = {}

    def make(network, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = lr
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=total, power=0.9)
        made.update(optimizer=optimizer, schedule=schedule)
        handler = TrainingCheckpoint(
            path, {"model": network, "optimizer": optimizer, "lr_scheduler": schedule}, **options
        )
        return Chain(LrScheduleHandler(schedule, print_lr=False), handler)

    trainer = make_trainer(epochs, [make])[0]
    trainer.state.epoch_length = length
    return trainer, made


class Chain:
    """Several handlers in order."""

    def __init__(self, *handlers):
        self.handlers = handlers

    def attach(self, engine):
        for handler in self.handlers:
            handler.attach(engine)


def test_a_resumed_training_follows_the_schedule_of_its_own_options(tmp_path, caplog):
    path = tmp_path / "last.pt"
    scheduled_trainer(path, 2, 0.1, 2)[0].run()
    trainer, made = scheduled_trainer(path, 5, 0.2, 5, resume=True)
    rates = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rates.append(made["optimizer"].param_groups[0]["lr"]))
    trainer.run()
    assert rates == pytest.approx([0.2 * (1 - epoch / 5) ** 0.9 for epoch in (2, 3, 4)])
    assert "lr_scheduler: total_iters was 2 and is 5" in caplog.text
    assert "lr_scheduler: base_lrs was [0.1] and is [0.2]" in caplog.text


def test_with_the_same_options_the_schedule_goes_on_to_the_last_bit(tmp_path, caplog):
    def rates_of(trainer, made):
        rates = []
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rates.append(made["optimizer"].param_groups[0]["lr"]))
        return rates

    whole, made = scheduled_trainer(tmp_path / "whole.pt", 5, 0.1, 5)
    expected = rates_of(whole, made)
    whole.run()
    first, _ = scheduled_trainer(tmp_path / "last.pt", 5, 0.1, 5)
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: first.terminate())
    first.run()
    second, made = scheduled_trainer(tmp_path / "last.pt", 5, 0.1, 5, resume=True)
    rates = rates_of(second, made)
    second.run()
    assert rates == expected[2:] and "another option" not in caplog.text


def test_what_a_resumed_training_cannot_change_is_refused_by_name(tmp_path):
    path = tmp_path / "last.pt"
    scheduled_trainer(path, 1, 0.1, 2, run={"fold": 0, "out_channels": 3, "seed": 7})[0].run()
    trainer, _ = scheduled_trainer(path, 2, 0.1, 2, resume=True, run={"fold": 1, "out_channels": 3, "seed": None})
    with pytest.raises(ValueError, match=r"cannot resume from .*last.pt: fold was 0 and is 1\. A resumed training"):
        trainer.run()
