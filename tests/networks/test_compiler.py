"""Compiled networks compute the same in one graph, and stay the networks that they were."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from helpers.reference import make_input
from monai.data import MetaTensor

from mednext_monai.networks import VARIANTS, Compiler, Ensemble, create_mednext, using_backend

TINY = {"base_channels": 2, "out_channels": 3}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing that another test has compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_one_graph_in_training_and_in_evaluation_with_the_same_outputs(variant):
    network = create_mednext(variant, **TINY, deep_supervision=True)
    plain, backend, x = copy.deepcopy(network), Counting(), make_input([1, 1, 16, 16, 16])
    Compiler(True, backend=backend, fullgraph=True)(network)  # a break of the graph is an error
    with torch.no_grad(), using_backend("plain"):
        for number, mode in enumerate((True, False), 1):
            expected, found = plain.train(mode)(x), network.train(mode)(x)
            assert backend.graphs == number
            for one, other in zip(expected, found) if mode else [(expected, found)]:
                torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("use_checkpoint", [False, True, "expansion"])
@pytest.mark.parametrize("options", [{}, {"norm": "layer", "use_grn": True}], ids=str)
def test_whatever_is_computed_again_there_is_one_graph_and_the_gradients_are_the_same(options, use_checkpoint):
    counts = {"block_counts": (1,) * 9, "deep_supervision": True, **options}
    network = create_mednext("S", **TINY, use_checkpoint=use_checkpoint, **counts).double().train()
    plain, backend, x = copy.deepcopy(network), Counting(), make_input([1, 1, 16, 16, 32]).double()
    Compiler(True, backend=backend, fullgraph=True)(network)
    with using_backend("plain"):
        for member in (network, plain):
            sum(output.square().mean() for output in member(x)).backward()
    assert backend.graphs == 1
    for one, other in zip(network.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compile", [False, "false", "no", 0])
def test_nothing_happens_if_it_is_off(compile):
    network, compiler = create_mednext("S", **TINY), Compiler(compile, backend="no such backend")
    compiler.check()
    assert compiler(network) is network and network._compiled_call_impl is None


@pytest.mark.parametrize("compile", [True, "true", "Yes", 1])
def test_a_compiled_network_is_the_same_object_with_the_same_names_and_its_copies_are_not_compiled(compile):
    network = create_mednext("S", **TINY)
    names, parameters = list(network.state_dict()), list(network.parameters())
    compiler = Compiler(compile, backend="eager")
    assert compiler(network) is network and compiler(network) is network
    assert network._compiled_call_impl is not None and copy.deepcopy(network)._compiled_call_impl is None
    assert list(network.state_dict()) == names
    assert all(one is other for one, other in zip(network.parameters(), parameters))
    assert type(network).__name__ == "MedNeXt"


def test_what_is_loaded_after_compiling_is_used():
    backend, x = Counting(), make_input([1, 1, 16, 16, 16])
    network, other = (create_mednext("S", **TINY).eval() for _ in range(2))
    Compiler(True, backend=backend)(network)
    with torch.no_grad(), using_backend("plain"):
        network(x)
        network.load_state_dict(other.state_dict())
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=0)
    assert backend.graphs == 1


def test_members_of_an_ensemble_share_one_graph():
    backend, x = Counting(), make_input([1, 1, 16, 16, 16])
    members = Ensemble([create_mednext("S", **TINY).eval() for _ in range(3)])
    with torch.no_grad(), using_backend("plain"):
        expected = members(x)
        assert Compiler(True, backend=backend)(members) is members
        torch.testing.assert_close(members(x), expected, rtol=0, atol=0)
    assert backend.graphs == 1


def test_metadata_pass_by_the_compiled_code():
    network, backend = create_mednext("S", **TINY, deep_supervision=True), Counting()
    x = MetaTensor(make_input([1, 1, 16, 16, 16]), meta={"name": "a"})
    Compiler(True, backend=backend, fullgraph=True)(network)
    with torch.no_grad():
        outputs = network.train()(x)
        output = network.eval()(x)
    assert backend.graphs == 2
    for tensor in (*outputs, output):
        assert isinstance(tensor, MetaTensor) and tensor.meta["name"] == "a"


def test_a_backend_that_does_not_work_is_said_before_anything_is_computed(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler found\nmore")

    message = (
        r"^compile: torch.compile does not work on this computer, RuntimeError: no compiler found. It needs a C\+\+ "
        r"compiler such as g\+\+, and on a GPU Triton; --compile false runs without it.$"
    )
    with pytest.raises(ValueError, match=message):
        Compiler(True, backend=broken).check()
    Compiler(True, backend="eager").check()
    assert "on a CPU, the optimized implementation that runs without this option is faster" in caplog.text


@pytest.mark.slow
def test_a_missing_compiler_is_found_although_an_earlier_run_had_one():
    code = "from mednext_monai.networks import Compiler; Compiler(True).check()"

    def run(**variables):
        return subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True
        )

    assert (works := run()).returncode == 0, works.stderr
    last = run(CXX="/no/such/compiler").stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: compile: torch.compile does not work on this computer, InvalidCxxCompiler: ")
