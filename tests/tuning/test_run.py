"""``mednext tune``: whatever happens to the process that measures costs a line; what is exact and faster is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.bundles import make_trained
from helpers.processes import is_running, wait_for
from helpers.tuning import make_case

from mednext_monai.cli import main
from mednext_monai.networks.backends.triton import table
from mednext_monai.tuning import run as tuning
from mednext_monai.tuning.run import judge

CASE = make_case(training=True, compiled=False)


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """Have the processes that measure begin with some code, and let them compute on a CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    table._read_keys.cache_clear()

    def begin_with(code: str) -> None:
        text = "import sys\nif 'mednext_monai.tuning.measure' in sys.orig_argv:\n"
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(text + textwrap.indent(textwrap.dedent(code), "    "))

    return begin_with


@pytest.mark.parametrize(
    "code, problem",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process was ended by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process was ended by SIGSEGV"),
        ("print('misaligned address', file=sys.stderr); import os; os._exit(3)", "failed: misaligned address"),
        ("import os; os._exit(3)", "failed: exit status 3"),
        ("import os; os._exit(0)", "no result"),
        ("open(sys.orig_argv[-2], 'w').write('{'); import os; os._exit(0)", "no result"),
    ],
)
def test_a_process_that_fails_costs_a_line(measuring, code, problem):
    measuring(code)
    verdict = judge(tuning._measured(CASE, "cpu", 60))
    assert not verdict.is_chosen and verdict.text.startswith("not used: ") and problem in verdict.text
    assert "\n" not in verdict.text


def test_a_process_that_hangs_ends_with_what_it_has_started(measuring, tmp_path):
    measuring(f"""
        import subprocess, time
        child = subprocess.Popen(["sleep", "1000"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(1000)
    """)
    verdict = judge(tuning._measured(CASE, "cpu", 2))
    assert verdict.text == "not used: no result within 2 s"
    assert wait_for(lambda: not is_running(int((tmp_path / "child").read_text())))


def test_what_was_known_before_a_failure_is_kept(measuring):
    measuring("""
        import json, os, signal
        open(sys.orig_argv[-2], "w").write(json.dumps({"key": 1, "environment": {}}))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    result = tuning._measured(CASE, "cpu", 60)
    assert result == {"key": 1, "environment": {}, "problem": "the process was ended by SIGKILL"}


def measured(plain, triton, **more) -> dict:
    return {"seconds": {"plain": plain, "triton": triton}, **more}


@pytest.mark.parametrize(
    "result, text",
    [
        (measured([1.0] * 10, [0.5] * 10), "used: exact; plain 1 s, Triton 0.5 s"),
        (measured([1.0] * 10, [0.96] * 10), "used: exact"),
        (measured([1.0] * 10, [0.98] * 10), "not used: not faster: exact; plain 1 s, Triton 0.98 s"),
        (measured([1.0] * 10, [2.0] * 10), "not used: not faster"),
        (measured([1.0] * 10, [0.9] * 8 + [1.1] * 2), "used"),
        (measured([1.0] * 10, [0.9] * 7 + [1.1] * 3), "not used: not faster"),
        (measured([1.0] * 9 + [0.1], [0.5] * 10), "used"),
        (
            measured([1.0], [0.5], memory={"plain": 2**30, "triton": 2**29}),
            "used: exact; plain 1 s, Triton 0.5 s; 1.0 and 0.5 GiB",
        ),
        (measured([1.0], [0.5], memory={"plain": 2**30, "triton": 2**31}), "not used: more memory"),
        (measured([1.0], [0.5], problem="wrong result"), "not used: wrong result"),
        ({}, "not used: no result"),
    ],
)
def test_only_what_is_exact_faster_and_not_larger_is_used(result, text):
    verdict = judge(result)
    assert verdict.text.startswith(text)
    assert verdict.is_chosen is text.startswith("used")


def test_without_a_gpu_the_command_says_so_in_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["tune", "--variant", "S", "--kernel_size", "3"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == f"mednext: error: {tuning.NO_GPU}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either a bundle, or --variant and --kernel_size"),
        (["--variant", "S"], "give either a bundle, or --variant and --kernel_size"),
        (["mednext_s_k3", "--variant", "S", "--kernel_size", "3"], "give either a bundle"),
        (["--variant", "X", "--kernel_size", "3"], "variant must be 'S', 'B', 'M' or 'L', got 'X'"),
        (
            ["mednext_s_k3", "--patch_size", "100"],
            "patch_size must be one or three (in 2D one or two) positive multiples of 16, or null, got 100",
        ),
        (
            ["mednext_s_k3", "--patch_size", "64,64"],
            "patch_size must be one or three positive multiples of 16, got [64, 64]",
        ),
        (["mednext_s_k3", "--batch_size", "0"], "batch_size must be an integer of at least 1"),
        (["mednext_s_k3", "--gradient_checkpointing", "maybe"], "gradient_checkpointing must be"),
        (["nowhere"], "bundle: nowhere is not a bundle"),
        (["mednext_s_k3", "--device", "cuda:9"], "device must be a GPU of this computer"),
        (["mednext_s_k3", "--device", "cpu"], "device must be a GPU of this computer"),
    ],
)
def test_bad_arguments_are_errors_before_anything_is_measured(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert main(["tune", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


QUICK = "from mednext_monai.networks.backends.triton import operators, eager; operators._on_kernels = lambda x: False\n"
SLOW_PLAIN = """
import time
from mednext_monai.networks import blocks
plain = blocks._BlockBase._transform
def slow(self, x):
    time.sleep(0.02)
    return plain(self, x)
blocks._BlockBase._transform = slow
"""
SLOW_KERNELS = """
import time
kernel = eager.mlp
eager.mlp = lambda *arguments: (time.sleep(0.02), kernel(*arguments))[1]
"""


@pytest.fixture
def bundle(tmp_path) -> Path:
    return make_trained("mednext_s_k3", tmp_path, base_channels=4)


def tune(bundle: Path, *options: str) -> int:
    arguments = ["--patch_size", "32", "--batch_size", "1", "--compile", "false", "--device", "cpu"]
    return main(["tune", str(bundle), *arguments, *options])


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, training, inference",
    [
        (SLOW_KERNELS, "not used: not faster: exact", "not used: not faster: exact"),
        (SLOW_PLAIN, "used: exact", "used: exact"),
        (
            "wrong = eager.depthwise_gradients\n"
            "eager.depthwise_gradients = lambda *a: tuple(2 * x for x in wrong(*a))\n" + SLOW_PLAIN,
            "not used: wrong result: gradient of ",
            "used: exact",
        ),
        (
            "wrong = eager.mlp\neager.mlp = lambda *a: wrong(*a).mul_(1.1)\n" + SLOW_PLAIN,
            "not used: wrong result: ",
            "not used: wrong result: output 0",
        ),
        (
            "def mlp(*a): raise RuntimeError('out of resources: shared memory')\neager.mlp = mlp\n",
            "not used: the process failed: RuntimeError: out of resources: shared memory",
            "not used: the process failed: RuntimeError: out of resources: shared memory",
        ),
        (
            "import os\neager.mlp_sums = lambda *a: os.kill(os.getpid(), 11)\n" + SLOW_PLAIN,
            "not used: the process was ended by SIGSEGV",
            "used: exact",
        ),
    ],
)
def test_kernels_that_fail_are_not_used_and_what_is_exact_and_faster_is(
    measuring, bundle, capsys, code, training, inference
):
    measuring(QUICK + code)
    assert tune(bundle) == 0
    first, second, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith(f"training, 1 x 1 x 32 x 32 x 32, float16: {training}")
    assert second.startswith(f"inference, 1 x 1 x 32 x 32 x 32, float16: {inference}")
    assert last == f"wrote {table.cache_file()}"
    entries = json.loads(table.cache_file().read_text())["entries"]
    assert [entry["key"]["training"] for entry in entries] == [
        step for step, text in ((True, training), (False, inference)) if text.startswith("used")
    ]


USE = """
import sys, torch
from mednext_monai.networks import MedNeXt, using_backend
from mednext_monai.networks.backends.triton import measured, operators
from mednext_monai.tuning.cases import bundle_cases
operators._on_kernels = lambda x: False
network = MedNeXt(**bundle_cases(sys.argv[1], {})[0].network).eval()
with torch.no_grad(), torch.autocast("cpu", torch.float16):
    for size in (32, 48):
        x = torch.randn(1, 1, size, 32, 32)
        with using_backend("triton"):
            print(measured.takes(network, x), torch.equal(network(x), expected := network(x)))
        with using_backend("auto"):
            print(torch.equal(network(x), expected))
"""


@pytest.mark.slow
def test_another_process_uses_what_was_written_until_it_is_no_longer_faster(measuring, bundle, capsys):
    def use() -> list[str]:
        result = subprocess.run([sys.executable, "-c", USE, str(bundle)], capture_output=True, text=True, check=True)
        return result.stdout.split()

    measuring(QUICK + SLOW_PLAIN)
    assert tune(bundle) == 0
    assert use() == ["True", "True", "True", "False", "True", "False"]
    measuring(QUICK + SLOW_KERNELS)
    assert tune(bundle) == 0
    assert use() == ["False", "True", "False", "False", "True", "False"]
