"""A loss that is not finite: all processes stop, and the one that has it writes the file."""

from __future__ import annotations

import math

import ignite.distributed as idist
import torch
from helpers.processes import spawn
from helpers.trainer import make_trainer
from ignite.engine import Engine, Events
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


def test_after_the_check_the_loss_is_on_the_cpu_and_holds_no_graph(tmp_path):
    trainer, *_ = make_trainer(handlers=[lambda network, optimizer: NonFiniteLoss(f"{tmp_path}/nonfinite.pt", {})])
    seen = []

    def look(engine):
        loss = engine.state.output["loss"]
        seen.append((loss.device.type, loss.requires_grad, loss.item() > 0))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    assert seen == [("cpu", False, True)] * 8
