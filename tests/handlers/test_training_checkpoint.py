"""A resumed training: ends where an uninterrupted one does, or says why it cannot be resumed."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.trainer import Scaler, make_trainer
from ignite.engine import Events
from monai.handlers import LrScheduleHandler

from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.handlers import BestCheckpoint, TrainingCheckpoint, check_start
from mednext_monai.weights import read_settings


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


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_truncated_or_foreign_checkpoint_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "last.pt"

    def checkpoint(n, o):
        return TrainingCheckpoint(path, {"model": n, "optimizer": o}, resume=True)

    make_trainer(1, [lambda n, o: TrainingCheckpoint(path, {"model": n, "optimizer": o})])[0].run()
    truncate(path)
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


def saved(path, epochs=3, **options):
    """Train and return the trainer; every epoch is saved."""
    trainer = make_trainer(epochs, [lambda n, o: TrainingCheckpoint(path, {"model": n, "optimizer": o}, **options)])[0]
    trainer.run()
    return trainer


def iterations(path):
    return torch.load(path, weights_only=True)["trainer"]["iteration"]


def test_the_checkpoint_before_is_kept_and_resumed_from_if_the_last_one_is_damaged(tmp_path, caplog):
    last, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    saved(last)
    assert (iterations(last), iterations(previous)) == (12, 8)
    truncate(last)
    check_start(tmp_path, 4, resume=True)
    assert f"{last} cannot be read: it is truncated" in caplog.text
    assert f"Resuming from the checkpoint before it, {previous}." in caplog.text
    with caplog.at_level("INFO"):
        saved(last, 3, resume=True)
    assert f"resumed from {previous} after epoch 2" in caplog.text
    assert (iterations(last), iterations(previous)) == (12, 8)  # the damaged one did not replace it
    saved(last, 4, resume=True)
    assert (iterations(last), iterations(previous)) == (16, 12)


def test_a_process_killed_between_the_two_renames_leaves_the_checkpoint_before(tmp_path):
    saved(tmp_path / "last.pt")
    (tmp_path / "last.pt").unlink()
    check_start(tmp_path, 4, resume=True)
    assert saved(tmp_path / "last.pt", 4, resume=True).state.iteration == 16


def test_if_both_are_damaged_the_error_names_both(tmp_path):
    saved(tmp_path / "last.pt")
    truncate(tmp_path / "last.pt")
    truncate(tmp_path / "last.previous.pt")
    with pytest.raises(ValueError, match=r"last.pt cannot be read: .* The one before it .*last.previous.pt cannot be"):
        check_start(tmp_path, 4, resume=True)


def test_a_new_training_does_not_keep_the_checkpoint_of_the_one_that_it_replaces(tmp_path):
    saved(tmp_path / "last.pt")
    saved(tmp_path / "last.pt", 1)
    assert iterations(tmp_path / "last.pt") == 4 and not (tmp_path / "last.previous.pt").exists()


@pytest.mark.parametrize("name", ["last.pt", "last.previous.pt", "model.pt", "model_best.pt"])
def test_a_new_training_replaces_no_other_without_being_asked_to(tmp_path, name):
    (tmp_path / "model.pt").write_bytes(PLACEHOLDER)
    check_start(tmp_path, 4)
    torch.save({}, tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{name} exists and would be replaced .* add --resume true .*--overwrite true.*--ckpt_dir"
    ):
        check_start(tmp_path, 4)
    check_start(tmp_path, 4, overwrite=True)


def test_resuming_and_overwriting_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="resume and overwrite are both true"):
        check_start(tmp_path, 4, resume=True, overwrite=True)


def test_what_forbids_a_resume_is_found_before_the_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot resume: .*last.pt does not exist"):
        check_start(tmp_path, 4, resume=True)
    saved(tmp_path / "last.pt", run={"fold": 0})
    check_start(tmp_path, 4, {"fold": 0}, resume=True)
    with pytest.raises(ValueError, match="last.pt: fold was 0 and is 1"):
        check_start(tmp_path, 4, {"fold": 1}, resume=True)
    with pytest.raises(ValueError, match="it has completed 3 epochs and epochs is 3; a larger --epochs"):
        check_start(tmp_path, 3, {"fold": 0}, resume=True)
    for content in ({"model": {}}, [1]):
        torch.save(content, tmp_path / "last.pt")
        (tmp_path / "last.previous.pt").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"last.pt(: it lacks|.* of type list)"):
            check_start(tmp_path, 4, resume=True)


def test_all_checkpoints_of_a_training_carry_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("mednext_monai.weights.settings._complete", lambda settings: {})
    settings = {"fold": 2, "training_ids": ["a"]}

    def handlers(network, optimizer):
        items = {"model": network, "optimizer": optimizer}
        checkpoint = TrainingCheckpoint(tmp_path / "last.pt", items, tmp_path / "model.pt", settings=settings)
        best = BestCheckpoint(network, str(tmp_path / "model_best.pt"), metric="m")
        return Chain(best, checkpoint)

    trainer = make_trainer(1, [handlers])[0]
    trainer.add_event_handler(Events.STARTED, lambda: trainer.state.metrics.update(m=0.5))
    trainer.run()
    for name in ("last.pt", "model.pt", "model_best.pt"):
        assert read_settings(tmp_path / name) == settings


def test_the_scaler_of_mixed_precision_is_resumed_or_starts_anew_where_there_was_none(tmp_path, caplog):
    def train(epochs, resume, scale):
        def checkpoint(network, optimizer):
            return TrainingCheckpoint(tmp_path / "last.pt", {"model": network, "optimizer": optimizer}, resume=resume)

        trainer, *_ = make_trainer(epochs, [lambda *_: Scaler(scale), checkpoint])
        trainer.run()
        return trainer.scaler and trainer.scaler.get_scale()

    train(1, False, None)
    assert train(2, True, 4.0) == 4.0
    assert "last.pt is of a training without mixed precision" in caplog.text
    assert torch.load(tmp_path / "last.pt", weights_only=True)["scaler"]["scale"] == 4.0
    caplog.clear()
    assert train(3, True, 8.0) == 4.0
    assert train(4, True, None) is None  # on a CPU, or with amp false
    assert "mixed precision" not in caplog.text
