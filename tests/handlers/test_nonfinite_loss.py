"""A loss that is not finite: all processes stop, and the one that has it writes the file."""

from __future__ import annotations

import math

import ignite.distributed as idist
import torch
from helpers.processes import spawn
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from mednext_monai.handlers import NonFiniteLoss


def _one_process(rank, path):
    idist.initialize("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
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
    torch.save(message, f"{path}/{rank}.pt")
    idist.finalize()


def test_several_processes_stop_together(tmp_path):
    spawn(_one_process, str(tmp_path))
    messages = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert "another process" in messages[0]
    assert "the loss is nan in epoch 1, iteration 1 of 5" in messages[1] and "case_1" in messages[1]
    assert torch.load(tmp_path / "nonfinite.pt", weights_only=True)["cases"] == ["case_1"]
