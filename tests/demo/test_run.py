"""Promises of the demo: its steps are ordinary commands, and its results are what they wrote."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from mednext_monai.bundles.commands import bundle_command
from mednext_monai.demo.run import run_demo


def test_command_is_what_a_user_would_type():
    bundle = Path("work", "mednext_s_k3")
    assert bundle_command(bundle, patch_size=[48, 48, 48], amp=False, upkern_checkpoint=Path("a b.pt")) == [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        "work/mednext_s_k3/configs/train.json",
        "--bundle_root",
        "work/mednext_s_k3",
        "--patch_size",
        "[48,48,48]",
        "--amp",
        "False",
        "--upkern_checkpoint",
        "a b.pt",
    ]
    command = bundle_command(bundle, ("train", "evaluate"), "run")
    assert json.loads(command[command.index("--config_file") + 1]) == [
        "work/mednext_s_k3/configs/train.json",
        "work/mednext_s_k3/configs/evaluate.json",
    ]


# A stand-in for `python -m monai.bundle`, which writes the results that the bundles write.
CHILD = """
import shutil, sys
from pathlib import Path
from helpers.events import write_scalars
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
output = Path(options["--bundle_root"], "eval")
print("> noise: 1")
print("an odd thing", file=sys.stderr)
if sys.argv[2] == "training":
    write_scalars(output, "train_loss", {4: 0.75, 5: 0.5})
    write_scalars(output, "val_mean_dice", {2: 0.8125})
elif sys.argv[2] == "evaluating":
    Path(output, "metrics.json").write_text('{"mean_over_classes": {"hd95_mm": 2, "dice": 0.75}}')
else:
    labels = Path(options["--dataset_dir"], "labelsTs")
    shutil.copytree(labels, options["--output_dir"])
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Have the run start the stand-in."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def command(*args, **kwargs):
        python, _, _, *rest = bundle_command(*args, **kwargs)
        return [python, str(script), *rest]

    monkeypatch.setattr("mednext_monai.demo.run.bundle_command", command)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # of the helpers


def test_run_leaves_logs_predictions_and_pictures_and_reports_dice(child, tmp_path, capsys):
    root = tmp_path / "demo"
    result = run_demo(str(root))
    assert result.dice_k3 == result.dice_k5 == {2: 0.8125}
    assert result.dice_evaluation == 0.75
    assert result.dice_test == {"synthetic_test_00": 1.0, "synthetic_test_01": 1.0}
    assert [file.name for file in result.predictions] == ["synthetic_test_00.nii.gz", "synthetic_test_01.nii.gz"]
    assert all(file.is_file() for file in result.predictions + result.overlays)
    assert [file.name for file in result.overlays] == ["synthetic_test_00.png", "synthetic_test_01.png"]
    assert all(file.stat().st_size < 60_000 and Image.open(file).width <= 640 for file in result.overlays)
    logs = sorted((root / "logs").iterdir())
    assert [log.name for log in logs] == ["1_train_k3.log", "2_train_k5.log", "3_evaluate.log", "4_inference.log"]
    assert all("> noise: 1" in log.read_text() and "an odd thing" in log.read_text() for log in logs)
    screen = capsys.readouterr().out
    assert "noise" not in screen and "odd" not in screen and "iteration 4" not in screen
    assert screen.count("  iteration 5: loss 0.500\n  epoch 2: validation Dice 0.812\n  done in") == 2
    commands = [line for line in screen.splitlines() if line.startswith("$ ")]
    assert len(commands) == 4
    assert f"--upkern_checkpoint {root}/mednext_s_k3/models/model.pt" in commands[1]


def test_failing_step_names_its_command_and_log_and_ends_the_run(monkeypatch, tmp_path):
    def failing(bundle, *args, **kwargs):
        return [sys.executable, "-c", "print('why'); raise SystemExit(7)"]

    monkeypatch.setattr("mednext_monai.demo.run.bundle_command", failing)
    root = tmp_path / "demo"
    with pytest.raises(ChildProcessError, match="exit status 7") as error:
        run_demo(str(root))
    assert "SystemExit(7)" in str(error.value)
    assert f"log: {root / 'logs' / '1_train_k3.log'}, which ends with\nwhy" in str(error.value)
    assert (root / "logs" / "1_train_k3.log").read_text() == "why\n"
    assert not (root / "logs" / "2_train_k5.log").exists()


def test_run_does_not_touch_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        run_demo(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("patch_size", [0, 40])
def test_run_refuses_a_patch_size_that_the_network_cannot_take(tmp_path, patch_size):
    with pytest.raises(ValueError, match=f"multiple of 16, got {patch_size}"):
        run_demo(str(tmp_path / "demo"), patch_size=patch_size)
    assert not (tmp_path / "demo").exists()
