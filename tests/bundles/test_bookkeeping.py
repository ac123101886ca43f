"""A bundle's bookkeeping: curves, pictures, MLflow, a loss that is not finite; loss and schedule against the recipe."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mednext_monai import bundles
from mednext_monai.pictures import COLORS

SHORT = ("--epochs", "2", "--iterations_per_epoch", "2", "--val_interval", "1")


def read_events(folder):
    """Return all curves, {tag: [(step, value)]}, and pictures, {tag: [(step, array)]}, of a folder of event files."""
    curves, pictures = {}, {}
    for file in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
        for tag in events.Tags()["images"]:
            for event in events.Images(tag):
                pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                pictures.setdefault(tag, []).append((event.step, pixels))
    return curves, pictures


def test_tensorboard_has_the_curves_and_pictures_of_every_epoch_and_the_best_weights_may_go_by_patches(run_bundle):
    log = run_bundle("training", "train", options=(*SHORT, "--val_interval", "2", "--best_by", "patches")).stdout
    curves, pictures = read_events(run_bundle.bundle / "eval")
    (_, first), (_, second) = curves["val_pooled_dice"]
    averages = [first, 0.9 * first + 0.1 * second]
    assert [step for step, _ in curves["val_pooled_dice_average"]] == [1, 2]
    assert [value for _, value in curves["val_pooled_dice_average"]] == pytest.approx(averages, abs=1e-6)
    assert [step for step, _ in curves["mean_train_loss"]] == [1, 2]
    assert [value for _, value in curves["learning_rate"]] == pytest.approx([1e-3, 1e-3 * 0.5**0.9], rel=1e-6)
    assert all(value > 0 for _, value in curves["gradient_norm"]) and len(curves["gradient_norm"]) == 2
    assert {"val_pooled_dice/outer", "val_mean_dice/inner"} <= set(curves)
    assert len(curves["train_loss"]) == 4 and [step for step, _ in curves["val_mean_dice"]] == [2]
    state = torch.load(run_bundle.bundle / "models" / "last.pt", weights_only=True)
    assert state["pseudo_dice"]["average"] == pytest.approx(averages[1], abs=1e-6)
    assert state["best"]["best"] == pytest.approx(max(averages), abs=1e-6)
    assert "val_pooled_dice_average" in log and "is the best so far" in log

    assert set(pictures) == {"validation/box_3", "validation/box_5"}  # fold 0 of six cases
    for (step, pixels), *more in pictures.values():
        assert step == 2 and not more
        # image, label, prediction side by side, in the label's column both classes in their colors
        column = pixels[:, pixels.shape[1] // 3 : 2 * pixels.shape[1] // 3]
        assert all((column == color).all(-1).any() for color in COLORS[:2])
        assert not any((pixels[:-60, : pixels.shape[1] // 3] == color).all(-1).any() for color in COLORS)


@pytest.mark.slow
def test_mlflow_tracks_a_training_with_monais_own_settings(run_bundle, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed (mednext-monai[tracking])")
    pytest.importorskip("sqlalchemy", reason="MLflow's database needs sqlalchemy (mednext-monai[tracking])")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    run_bundle("training", "train", options=(*SHORT, "--tracking", "mlflow"))
    output = run_bundle.bundle / "eval"
    client = MlflowClient(f"sqlite:///{output / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"max_epochs": "2", "epoch_length": "2"}
    tracked = {name: [m.value for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    curves, _ = read_events(output)
    names = ("train_loss", "mean_train_loss", "learning_rate", "gradient_norm")
    for name in (*names, "val_pooled_dice", "val_pooled_dice_average", "val_mean_dice", "val_mean_dice/outer"):
        assert tracked[name] == pytest.approx([value for _, value in curves[name]], rel=1e-6), name
    assert tracked["lr_group_0"] == pytest.approx([1e-3, 1e-3, 1e-3 * 0.5**0.9, 1e-3 * 0.5**0.9], rel=1e-12)
    assert [file.path.startswith("config_") for file in client.list_artifacts(run.info.run_id)] == [True]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_does_harm(run_bundle):
    models = run_bundle.bundle / "models"
    run_bundle("training", "train", options=("--epochs", "1", "--iterations_per_epoch", "2", "--val_interval", "9"))
    last, weights = (models / "last.pt").read_bytes(), (models / "model.pt").read_bytes()
    stored = sorted((run_bundle.bundle / "cache").glob("v*/*/*/image.npy"))
    assert len(stored) == 6
    for file in stored:  # a disk gone bad: the checks before the first step read the sources, not these
        array = np.load(file)
        array[:] = np.nan
        np.save(file, array)
    options = ("--epochs", "2", "--iterations_per_epoch", "2", "--resume", "true")
    result = run_bundle("training", "train", options=options, check=False)
    assert result.returncode != 0

    state = torch.load(models / "nonfinite.pt", weights_only=True)
    assert (state["epoch"], state["iteration"]) == (2, 1) and np.isnan(state["loss"])
    assert len(state["cases"]) == 2 and set(state["cases"]) <= {"box_0", "box_1", "box_2", "box_4"}
    names = ", ".join(state["cases"])
    message = f"FloatingPointError: the loss is nan in epoch 2, iteration 1 of 2. Cases of this batch: {names}. "
    assert message + f"The image itself has NaN or infinite values in {names}." in result.stderr
    assert str(models / "nonfinite.pt") in result.stderr
    assert state["image"].shape == (2, 1, 32, 32, 32) and state["label"].shape == (2, 1, 32, 32, 32)
    assert (models / "last.pt").read_bytes() == last and (models / "model.pt").read_bytes() == weights
    before = torch.load(models / "last.pt", weights_only=True)
    for name, value in before["model"].items():
        assert torch.equal(state["model"][name], value), name
    for moments in (state, before):
        assert {int(entry["step"]) for entry in moments["optimizer"]["state"].values()} == {2}


@pytest.fixture
def train_config():
    """Parse a bundle's train.json with a tiny network; values are built when asked for."""

    def parse(**changes):
        parser = ConfigParser()
        parser.read_config(bundles.path("mednext_s_k3") / "configs" / "train.json")
        parser["network_def"]["base_channels"] = 2
        for name, value in {"device": "cpu", "out_channels": 3, **changes}.items():
            parser[name] = value
        parser["device"] = "$torch.device('cpu')"
        return parser

    return parse


def published_loss(outputs, label, batch_dice):
    """Recompute nnU-Net v1's loss under MedNeXt's weights, in float64: cross-entropy minus soft Dice of each output."""
    total = 0.0
    for index, logits in enumerate(outputs):
        step = 2**index
        target = label[:, 0, step // 2 :: step, step // 2 :: step, step // 2 :: step]  # the nearest voxel of the center
        probabilities = logits.softmax(1)
        entropy = -probabilities.log().gather(1, target[:, None]).mean()
        one_hot = torch.stack([target == value for value in range(logits.shape[1])], 1).double()
        axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
        overlap, total_size = (probabilities * one_hot).sum(axes), (probabilities + one_hot).sum(axes)
        dice = (2 * overlap + 1e-5) / (total_size + 1e-5)
        total += 2.0**-index * (entropy - dice[..., 1:].mean())
    return total / (1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 16)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_loss_is_the_published_one_plus_one(train_config, batch_dice):
    generator = torch.Generator().manual_seed(0)
    outputs = [3 * torch.randn(2, 3, *[16 // 2**i] * 3, generator=generator).double() for i in range(5)]
    label = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=generator)
    label[1][label[1] == 2] = 0  # a class in one sample only, where the two kinds of Dice differ most
    loss = train_config(batch_dice=batch_dice).get_parsed_content("loss")(outputs, label.to(torch.uint8))
    assert loss.item() == pytest.approx(published_loss(outputs, label, batch_dice).item() + 1, rel=1e-7)


def test_optimizer_and_learning_rate_of_every_epoch_are_the_published_ones(train_config):
    parser = train_config(epochs=1000)
    optimizer, schedule = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert [group[key] for key in ("lr", "betas", "eps", "weight_decay")] == [1e-3, (0.9, 0.999), 1e-4, 3e-5]
    assert len(group["params"]) == len(list(parser.get_parsed_content("network").parameters()))
    (handler,) = [item for item in parser["train"]["handlers"] if "LrScheduleHandler" in str(item)]
    rates = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1000,
        train_data_loader=[{"image": torch.ones(1, 1), "label": 0}],
        network=torch.nn.Linear(1, 1),
        optimizer=optimizer,
        prepare_batch=lambda batch, *_, **__: (batch["image"], 0),
        loss_function=lambda prediction, _: (rates.append(group["lr"]), prediction.mean())[1],
        decollate=False,
        train_handlers=[LrScheduleHandler(schedule, print_lr=handler["print_lr"])],
    )
    trainer.run()
    assert rates == pytest.approx([1e-3 * (1 - epoch / 1000) ** 0.9 for epoch in range(1000)], rel=1e-10)


@pytest.mark.parametrize("config", ["inference", "evaluate"])
def test_the_weights_after_the_last_epoch_are_used_unless_another_checkpoint_is_named(config):
    folder = bundles.path("mednext_s_k3") / "configs"
    content = ConfigParser.load_config_file(folder / f"{config}.json")
    handlers = content["handlers"] if config == "inference" else content["validate::handlers"]
    name = "checkpoint_paths" if config == "inference" else "checkpoint_path"
    loaded = "$@members.checkpoints" if config == "inference" else f"@{name}"
    first = handlers[0] if config == "inference" else handlers[0]["loader"]  # shared with tools that add a loader
    assert first == "@weights_loader" and content["weights_loader"]["load_path"] == loaded
    assert config == "evaluate" or content["members"]["checkpoints"] == f"@{name}"
    for checkpoint, path in ((content["checkpoint"], "models/model.pt"), ("best.pt", "best.pt")):
        parts = {"ckpt_dir": "models", "fold": 0, "folds": None, "checkpoint": checkpoint}
        found = ConfigParser({**parts, name: content[name]}).get_parsed_content(name)
        assert found == ([path] if config == "inference" else path)
