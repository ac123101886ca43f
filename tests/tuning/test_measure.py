"""One measurement: the kernels as the backend ``"auto"`` runs them against the plain modules, exact or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tuning import NETWORK, let_cpu_tensors_pass, make_case

from mednext_monai.networks.backends.triton import eager, measured, operators
from mednext_monai.tuning.measure import measure

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    let_cpu_tensors_pass(monkeypatch)


@pytest.mark.parametrize("training", [True, False])
def test_what_the_kernels_compute_is_exact_and_timed_in_turn(training):
    reports = []
    result = measure(make_case(training=training, compiled=False), CPU, 3, reports.append)
    assert "problem" not in result
    assert result["error"] <= max(2 * result["plain_error"], 2**-7)
    assert {name: len(times) for name, times in result["seconds"].items()} == {"plain": 3, "triton": 3}
    assert result["key"]["shape"] == (1, 1, 32, 32, 32) and result["key"]["training"] is training
    assert result["key"]["types"] == ("torch.float32", "torch.float32", "torch.float16")
    (report,) = reports  # before the first kernel
    assert set(report) == {"key", "environment"} and report.items() <= result.items()


def changed(monkeypatch, name: str, change) -> None:
    plain = getattr(eager, name)
    monkeypatch.setattr(eager, name, lambda *args: change(plain(*args)))


def corner(x: torch.Tensor) -> torch.Tensor:
    x[..., -1, -1, -1] += 1
    return x


@pytest.mark.parametrize(
    "name, change",
    [
        ("mlp", lambda x: x.mul_(1.1)),
        ("mlp", corner),
        ("mlp", lambda x: x.fill_(torch.nan)),
        ("depthwise", lambda x: x.roll(1, 2)),
        ("instance_statistics", lambda pair: (pair[0] + 0.3, pair[1])),
    ],
)
def test_a_wrong_output_is_a_problem_that_names_the_tensor(monkeypatch, name, change):
    changed(monkeypatch, name, change)
    result = measure(make_case(training=False, compiled=False), CPU, 1)
    assert result["problem"].startswith("wrong result: output 0 has a relative error of ")
    assert "seconds" not in result and result["key"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("depthwise_gradients", lambda pair: (pair[0], 1.2 * pair[1])),
        ("depthwise_gradients", lambda pair: (1.2 * pair[0], pair[1])),
        ("mlp_sums", lambda sums: (1.2 * sums[0], *sums[1:])),
        ("mlp_sums", lambda sums: (*sums[:2], torch.zeros_like(sums[2]))),
        ("mlp_input_gradient", lambda x: x.mul_(1.2)),
    ],
)
def test_a_wrong_gradient_alone_is_a_problem(monkeypatch, name, change):
    changed(monkeypatch, name, change)
    result = measure(make_case(training=True, compiled=False), CPU, 1)
    assert result["problem"].startswith("wrong result: gradient of ")


def test_a_network_that_the_kernels_do_not_compute_is_a_problem():
    result = measure(make_case(network={**NETWORK, "norm": "layer"}, training=True, compiled=False), CPU, 1)
    assert result == {"problem": "the kernels do not compute such a network"}


def test_kernels_that_did_not_run_are_not_taken_for_exact(monkeypatch):
    monkeypatch.setattr(measured, "takes", lambda network, x: False)
    result = measure(make_case(training=True, compiled=False), CPU, 1)
    assert result["problem"] == "the kernels were not used"


CODE = """
import sys, torch
from helpers.tuning import make_case
from mednext_monai.networks.backends.triton import operators
from mednext_monai.tuning.measure import measure
assert operators.interpreted
case = make_case(shape=[1, 1, 16, 16, 16], training=sys.argv[1] == "training", compiled=False)
result = measure(case, torch.device("cpu"), 1)
assert "problem" not in result, result
assert result["environment"]["gpu"].startswith("interpreter"), result
"""


@pytest.mark.slow
@pytest.mark.skipif(not operators.installed, reason="the package triton is not installed")
@pytest.mark.parametrize("step", ["training", "inference"])
def test_the_kernels_themselves_are_exact_under_the_interpreter(step):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    result = subprocess.run([sys.executable, "-c", CODE, step], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
