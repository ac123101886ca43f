"""The switch between implementations of the network, and which of those that registered is used."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from mednext_monai.networks import BACKENDS, MedNeXt, MedNeXtBlock, dispatch, get_backend, set_backend, using_backend


def test_a_block_of_code_has_its_backend_and_leaves_the_old_one_behind():
    before = get_backend()
    for name in BACKENDS:
        with using_backend(name):
            assert get_backend() == name
    with pytest.raises(RuntimeError), using_backend("plain"):
        raise RuntimeError
    assert get_backend() == before


def test_an_unknown_backend_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'auto', 'plain', 'triton'.*'cuda'"):
        set_backend("cuda")


@pytest.mark.parametrize("name, expected", [("plain", "plain"), ("fast", "MEDNEXT_BACKEND must be one of")])
def test_the_environment_variable_sets_the_initial_backend(name, expected):
    code = "from mednext_monai.networks import get_backend; print(get_backend())"
    environment = {**os.environ, "MEDNEXT_BACKEND": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert expected in result.stdout + result.stderr


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What implementations, which take blocks and networks whose ``taken`` is their name, were asked and have run."""
    log = []

    def make(name: str) -> SimpleNamespace:
        def takes(module, x):
            log.append(f"{name}?")
            return getattr(module, "taken", None) == name

        def run(module, x):
            log.append(name)
            return x + 1

        return SimpleNamespace(takes=takes, run=run)

    monkeypatch.setattr(dispatch, "_implementations", [])
    for name in ("one", "two"):
        dispatch.register("auto", make(name))
    dispatch.register("triton", make("three"))
    return log


@pytest.mark.parametrize("make", [lambda: MedNeXtBlock(3, 4, 4), lambda: MedNeXt(in_channels=4, base_channels=4)])
def test_the_first_implementation_of_the_backend_that_takes_a_module_computes_it(make, asked):
    module, x = make(), torch.zeros(1, 4, 16, 16, 16)
    module.taken = "two"
    with using_backend("auto"):
        assert torch.equal(module(x), x + 1)
    assert asked == ["one?", "two?", "two"]
    asked.clear()
    module.taken = "three"
    with using_backend("triton"):
        assert torch.equal(module(x), x + 1)
    assert asked == ["three?", "three"]


def test_nothing_is_remembered_and_the_backend_named_plain_has_no_implementation(asked):
    block, x = MedNeXtBlock(3, 4, 4), torch.zeros(1, 4, 4, 4, 4)
    with using_backend("auto"):
        for block.taken in ("one", None, "one"):
            assert torch.equal(block(x), x + 1) is (block.taken == "one")
    asked.clear()
    with using_backend("plain"):
        block(x)
    assert asked == []


def test_a_preference_holds_in_its_thread_only_and_ends_with_its_block(asked):
    block, x = MedNeXtBlock(3, 4, 4), torch.zeros(1, 4, 4, 4, 4)
    block.taken = "three"  # by the backend triton

    def is_taken() -> bool:
        return torch.equal(block(x), x + 1)

    with using_backend("plain"), ThreadPoolExecutor(1) as other:
        with dispatch.preferring("triton"):
            assert is_taken() and not other.submit(is_taken).result()
            with dispatch.preferring("plain"):
                assert not is_taken()
            assert is_taken() and get_backend() == "plain"
            with pytest.raises(ValueError, match="name must be one of"), dispatch.preferring("cuda"):
                pass
        assert not is_taken()


def test_tracing_asks_no_implementation(asked):
    block, x = MedNeXtBlock(3, 4, 4), torch.zeros(1, 4, 4, 4, 4)
    block.taken = "one"
    with using_backend("auto"):
        torch.jit.trace(block, x, check_trace=False)
    assert asked == []


def test_an_implementation_for_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="backend must be one of"):
        dispatch.register("cuda", SimpleNamespace(takes=None, run=None))


def test_triton_is_loaded_when_a_block_first_runs_on_it():
    code = (
        "import sys, torch; from mednext_monai.networks import MedNeXtBlock, using_backend\n"
        "operators = 'mednext_monai.networks.backends.triton.operators'\n"
        "block = MedNeXtBlock(3, 4, 4); block(torch.zeros(1, 4, 2, 2, 2)); print(operators in sys.modules)\n"
        "try:\n with using_backend('triton'): block(torch.zeros(1, 4, 2, 2, 2))\n"
        "except RuntimeError: pass\n"
        "print(operators in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
