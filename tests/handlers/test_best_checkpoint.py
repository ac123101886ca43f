"""The best weights: written when the chosen metric rises, and only then."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from mednext_monai.handlers import BestCheckpoint, best_metric


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
