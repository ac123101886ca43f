"""Federated learning: MONAI's client algorithm on a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.bundles import make_member
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType
from monai.fl.utils.exchange_object import ExchangeObject

from mednext_monai import bundles
from mednext_monai.weights import read_state_dict

TINY = {
    "patch_size": [32, 32, 32],
    "num_workers": 0,
    "pseudo_dice_batches": 1,
    "iterations_per_epoch": 2,
    "val_interval": 1,
    "seed": 0,
    "out_channels": 3,
    "device": "cpu",
    "network_def::base_channels": 4,
}


def make_client(directory: Path, dataset: Path, **added: object) -> MonaiAlgo:
    """Return a client with a bundle that has no weights."""
    bundles.copy("mednext_s_k3", directory)
    options = {**TINY, "dataset_dir": str(dataset), **added}
    client = MonaiAlgo(
        "mednext_s_k3",
        train_kwargs={**options, "epochs": 3},
        eval_kwargs={**options, "mirror": False},
        best_model_filepath="models/model_best.pt",
        final_model_filepath="models/model.pt",
    )
    client.initialize({ExtraItems.CLIENT_NAME: "hospital", ExtraItems.APP_ROOT: str(directory)})
    return client


def test_statistics_of_the_data_are_of_the_images_of_the_fold(dataset, tmp_path):
    bundles.copy("mednext_s_k3", tmp_path)
    file = tmp_path / "mednext_s_k3" / "configs" / "train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "dataset_dir": str(dataset), "out_channels": 3}))
    client = MonaiAlgoStats("mednext_s_k3")
    client.initialize({ExtraItems.APP_ROOT: str(tmp_path)})
    bins = {FlStatistics.HIST_BINS: [10], FlStatistics.HIST_RANGE: [[-10.0, 40.0]]}
    found = client.get_data_stats(bins).statistics
    counts = {
        side: (found[side][FlStatistics.DATA_COUNT], found[side][FlStatistics.FAIL_COUNT]) for side in ("train", "eval")
    }
    assert counts == {"train": (4, 0), "eval": (2, 0)}
    assert not (file.parents[1] / "cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize("added", [{}, {"compile": True, "compiler::backend": "eager"}], ids=["plain", "compiled"])
def test_rounds_train_the_weights_of_the_server_and_evaluate_them(dataset, tmp_path, added):
    client = make_client(tmp_path, dataset, **added)
    handlers = client.eval_workflow.parser["validate::handlers"]
    assert [handler["_target_"] for handler in handlers if handler.get("_disabled_") is True] == [
        "mednext_monai.handlers.SharedCheckpointLoader"
    ]
    models = tmp_path / "mednext_s_k3" / "models"
    server = read_state_dict(make_member("mednext_s_k3", tmp_path / "server") / "models" / "model.pt")
    rates = []
    for _ in range(3):
        client.train(ExchangeObject(weights=server), {})
        difference = client.get_weights().weights
        assert difference.keys() == server.keys()
        assert any(float(change.abs().max()) > 0 for change in difference.values())
        server = {name: value + difference[name] for name, value in server.items()}
        rates.append(client.trainer.optimizer.param_groups[0]["lr"])
        metrics = client.evaluate(ExchangeObject(weights=server), {}).metrics
        assert 0 <= metrics["mean_dice"] <= 1
        for name, value in client.evaluator.network.state_dict().items():  # no checkpoint has replaced them
            torch.testing.assert_close(value.cpu(), server[name])
    assert rates[0] > rates[1] > rates[2] == 0
    for kind, file in ((ModelType.FINAL_MODEL, "model.pt"), (ModelType.BEST_MODEL, "model_best.pt")):
        weights = client.get_weights({ExtraItems.MODEL_TYPE: kind}).weights
        stored = read_state_dict(models / file)
        assert all(torch.equal(weights[name], value) for name, value in stored.items())
    client.finalize()
