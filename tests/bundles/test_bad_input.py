"""What a user gets for bad input: an error that names the file or argument, before the first training step."""

from __future__ import annotations

import pytest
from helpers.datasets import rewrite


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fold", "7"), "fold must be one of"),
        pytest.param(("--in_channels", "2"), "has 1 channel(s), expected 2 (in_channels)", marks=pytest.mark.slow),
        pytest.param(("--out_channels", "2"), "contains the label value(s) 2", marks=pytest.mark.slow),
        (("--resume", "true"), "cannot resume"),
        pytest.param(("--upkern_checkpoint", "none.pt"), "none.pt, does not exist", marks=pytest.mark.slow),
    ],
)
def test_a_training_ends_with_the_message_before_its_first_step(run_bundle, options, message):
    result = run_bundle("training", "train", options=("--epochs", "1", *options), check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Iter: 1/" not in result.stdout
    assert not (run_bundle.bundle / "models" / "last.pt").exists()


def test_a_run_without_foreground_in_one_case_and_with_volumes_smaller_than_the_patch_trains(run_bundle, cases):
    rewrite(cases[0]["label"], lambda x: x * 0)
    options = ("--epochs", "1", "--iterations_per_epoch", "8", "--val_interval", "1", "--patch_size", "[48,48,48]")
    result = run_bundle("training", "train", options=(*options, "--batch_size", "1"))
    assert "has no foreground" in result.stdout
    assert (run_bundle.bundle / "models" / "model.pt").is_file()
