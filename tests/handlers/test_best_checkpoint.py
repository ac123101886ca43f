"""The best weights: written when the chosen metric rises, and only then."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler, from_engine

from mednext_monai.handlers import BestCheckpoint, best_metric
from mednext_monai.metrics import MeanDice


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


def test_a_validation_without_foreground_is_no_score_and_the_first_score_is_the_best(tmp_path, caplog):
    """With MONAI's evaluator: `0.0000 is the best so far` was written for a fold without foreground."""
    caplog.set_level("INFO")
    handler = BestCheckpoint(torch.nn.Identity(), tmp_path / "best.pt")
    cases = [{"image": torch.zeros(2, 1, 2, 2, 2), "label": torch.zeros(2, 1, 2, 2, 2)}]

    def predict(batch, device, non_blocking):
        labels = torch.cat([1 - batch["label"], batch["label"]], dim=1)
        return batch["image"], labels

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=cases,
        network=torch.nn.Identity(),
        prepare_batch=predict,
        postprocessing=lambda data: {**data, "pred": torch.stack([data["pred"][0] > 0] * 2)},
        key_val_metric={"dice": MeanDice(False, output_transform=from_engine(["pred", "label"]))},
        val_handlers=[StatsHandler(name="stats", iteration_log=False), handler],
    )
    for epoch in (1, 2):
        evaluator.run(epoch)
        assert math.isnan(evaluator.state.metrics["dice"])
    assert handler.best == -math.inf and not (tmp_path / "best.pt").exists()
    assert "is the best" not in caplog.text and "Got new best" not in caplog.text
    assert caplog.text.count("dice has no score: the validation has no foreground.") == 1

    cases[0]["label"][:] = 1
    evaluator.run(3)
    assert handler.best == 0 and (tmp_path / "best.pt").exists()  # foreground that is not found is a score
    assert evaluator.state.best_metric_epoch == 3 and "dice 0.0000 is the best so far" in caplog.text


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
