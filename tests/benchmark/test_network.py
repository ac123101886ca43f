"""Promises of the sections forward, training and window: contestants agree, and an error shows."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
from helpers.benchmark import TINY, run

from mednext_monai.benchmark.contestants import build
from mednext_monai.benchmark.network import reference, relative_error, step_inputs
from mednext_monai.benchmark.options import parse

FLOAT32 = ["--others_dtype", "float32"]


def test_relative_error_is_over_all_tensors_and_shows_nan():
    expected = [torch.tensor([1.0, -4.0]), torch.tensor([2.0])]
    assert relative_error([torch.tensor([1.0, -4.0]), torch.tensor([3.0])], expected) == 0.25
    assert np.isnan(relative_error([torch.tensor([1.0, np.nan]), torch.tensor([2.0])], expected))


def test_a_wrong_contestant_shows_in_its_agreement():
    options = parse(TINY)
    x, gradients = step_inputs(16, batch=1, device="cpu", training=False)
    errors = reference(options, "S_k3", x, gradients)
    plain = build(options, "S_k3", ["plain"], training=False)["plain"]
    with torch.no_grad():
        assert errors(plain, plain(x)) == {"output": 0}
        plain.network.out_0.conv_out.bias += 1
        assert errors(plain, plain(x))["output"] > 0.1


def test_all_contestants_compute_the_same_with_the_same_weights(tmp_path):
    measurements = run(tmp_path, "--sections", "forward,training,window")
    assert [m["section"] for m in measurements] == ["forward", "training", "window", "window"]
    for m in measurements:
        assert set(m["values"]) == {"ours", "plain", "monai"} and list(m["skipped"]) == ["original"]
        assert all(len(values) == 2 and min(values) > 0 for values in m["values"].values())
        assert set(m["ratios"]) == {"plain", "monai"}
        keys = {"output", "gradient"} if m["section"] == "training" else {"output"}
        for errors in m["agreement"].values():
            assert set(errors) == keys and all(error < 1e-5 for error in errors.values())
    assert [m["case"].split(", ")[-1] for m in measurements[2:]] == ["mirror off", "mirror on"]


def test_contestants_that_cannot_run_are_skipped_with_the_reason(tmp_path, capsys):
    (found,) = run(tmp_path, "--sections", "forward", "--variants", "B_k3")
    assert set(found["values"]) == {"ours", "plain"} and set(found["skipped"]) == {"original", "monai"}
    assert "original skipped: needs --upstream, a checkout of MIC-DKFZ/MedNeXt" in capsys.readouterr().out


def test_ours_in_bfloat16_runs_against_others_in_another_type(tmp_path):
    arguments = ["--sections", "forward,window", "--mirror", "off", "--contestants", "ours,plain"]
    with patch("mednext_monai.networks.backends.cpu.precision.bfloat16_pays", return_value=True):
        both, ours = (
            run(tmp_path / n, *arguments, "--dtype", "bf16", *more) for n, more in (("a", []), ("b", FLOAT32))
        )
    for m in both:
        assert all(1e-4 < error["output"] < 0.05 for error in m["agreement"].values())
    for m in ours:
        assert 1e-4 < m["agreement"]["ours"]["output"] < 0.05 and m["agreement"]["plain"]["output"] < 1e-6
