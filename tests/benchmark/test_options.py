"""Promises of the command line: bad values are errors that name the option, and help is instant."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mednext_monai.benchmark.__main__ import main
from mednext_monai.benchmark.options import SECTIONS, parse


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--variants", "S_k3,XL_k3"], "--variants must be among S_k3,.*L_k5, got 'XL_k3'"),
        (["--sections", "speed"], "--sections must be among forward,.*, got 'speed'"),
        (["--size", "64,40"], "--size must be a multiple of 16, got 64,40"),
        (["--size", "big"], "--size must be positive integers such as N,N, got 'big'"),
        (["--volume", "64x64"], "--volume must be positive integers such as NxNxN, got '64x64'"),
        (["--roi", "40"], "--roi must be a multiple of 16, got 40"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--load", "-1"], "--load must be at least 0, got -1"),
        (["--patches", "3"], "--patches must be even, got 3"),
        (["--contestants", "monai"], "--contestants must include ours, got monai"),
        (["--upstream", "/nowhere"], "--upstream must be a checkout of MIC-DKFZ/MedNeXt, but /nowhere/.* not exist"),
        (["--device", "meta"], "--device must be cpu or cuda, got 'meta'"),
    ],
)
def test_bad_options_are_errors_that_name_the_option(capsys, arguments, message):
    assert main(["--quick", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("benchmark: error: --") and re.search(message, error)


def test_quick_is_a_set_of_defaults_over_which_other_options_win():
    options = parse(["--quick", "--size", "16,48", "--variants", "all"])
    assert options.size == (16, 48) and options.repeats == 3 and options.sections == SECTIONS
    assert len(options.variants) == 8 and options.variants[3] == "B_k5"


def test_help_waits_for_neither_torch_nor_monai():
    code = "import sys; from mednext_monai.benchmark.__main__ import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--upstream" in result.stdout and result.stdout.splitlines()[-1] == "[]"
