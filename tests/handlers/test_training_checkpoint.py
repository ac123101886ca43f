"""A resumed training: ends where an uninterrupted one does, or says why it cannot be resumed."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.trainer import make_trainer
from ignite.engine import Events

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
