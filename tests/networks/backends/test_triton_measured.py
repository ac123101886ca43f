"""The backend ``"auto"`` uses the Triton kernels for what was measured, and for nothing that differs in anything."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from helpers.tuning import let_cpu_tensors_pass, make_network, trial_key

from mednext_monai.networks import dispatch, using_backend
from mednext_monai.networks.backends.triton import block as triton_block
from mednext_monai.networks.backends.triton import measured, table

BLOCKS = 17  # of the network


@contextlib.contextmanager
def mode(training: bool, autocast: torch.dtype | None = torch.bfloat16):
    with (
        using_backend("auto"),
        torch.set_grad_enabled(training),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        yield


@pytest.fixture
def used(monkeypatch, tmp_path) -> list[torch.nn.Module]:
    """The blocks that have run on the backend Triton, with CPU tensors and in torch operations."""
    blocks = []
    let_cpu_tensors_pass(monkeypatch)
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path))
    run = triton_block.run
    monkeypatch.setattr(triton_block, "run", lambda block, x: (blocks.append(block), run(block, x))[1])
    return blocks


@pytest.mark.parametrize("training", [True, False])
def test_a_measured_network_runs_on_the_kernels_and_gives_what_they_give(used, training):
    network, x = make_network().train(training), torch.randn(1, 1, 16, 16, 16)
    with mode(training):
        key = trial_key(network, x)
        plain = network(x)
        assert used == []
        with table.trial(key):
            result = network(x)
    assert len(used) == BLOCKS
    with mode(training), using_backend("triton"):
        expected = network(x)
    for one, two, other in zip(*(y if training else [y] for y in (result, expected, plain))):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
    assert not torch.equal(result[0], plain[0])


def test_gradients_also_of_checkpointed_blocks_come_from_the_kernels(used):
    network, x = make_network(use_checkpoint=True).train(), torch.randn(1, 1, 16, 16, 16)
    with mode(True):
        with table.trial(trial_key(network, x)):
            output = network(x)[0]
        output.square().mean().backward()  # the trial is over: what was begun is finished alike
    assert len(used) == 2 * BLOCKS
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("out_"))


def other_shape(network, x):
    return torch.randn(1, 1, 32, 16, 16)


def other_batch(network, x):
    return torch.randn(2, 1, 16, 16, 16)


def other_type(network, x):
    return x.bfloat16()


def other_values(network, x):
    network.stem.weight.data *= 2
    return x


def frozen(network, x):
    network.stem.weight.requires_grad_(False)
    return x


def hooked(network, x):
    network.bottleneck[0].conv1.register_forward_hook(lambda *_: None)
    return x


def replaced(network, x):
    network.up_0.act = torch.nn.ReLU()
    return x


def in_eval(network, x):
    network.eval()
    return x


@pytest.mark.parametrize(
    "change, is_used",
    [
        (other_values, True),
        (other_shape, False),
        (other_batch, False),
        (other_type, False),
        (frozen, False),
        (hooked, False),
        (replaced, False),
        (in_eval, False),
    ],
)
def test_another_input_or_network_runs_as_written(used, change, is_used):
    network, x = make_network().train(), torch.randn(1, 1, 16, 16, 16)
    with mode(True), table.trial(trial_key(network, x)):
        network(change(network, x))
    assert len(used) == (BLOCKS if is_used else 0)


@pytest.mark.parametrize(
    "changes",
    [{"out_channels": 4}, {"expansion_ratio": 3}, {"kernel_size": 5}, {"use_checkpoint": True}, {"use_residual": False}]
    + [{"deep_supervision": False}, {"block_counts": [1] * 8 + [2]}, {"norm": "layer"}, {"use_grn": True}],
)
def test_a_network_that_differs_in_one_argument_runs_as_written(used, changes):
    x = torch.randn(1, 1, 16, 16, 16)
    with mode(True), table.trial(trial_key(make_network().train(), x)):
        make_network(**changes).train()(x)
    assert used == []


@pytest.mark.parametrize("autocast", [torch.float16, None])
def test_another_precision_runs_as_written(used, autocast):
    network, x = make_network().train(), torch.randn(1, 1, 16, 16, 16)
    with mode(True):
        key = trial_key(network, x)
    with mode(True, autocast), table.trial(key):
        network(x)
    assert used == []


def test_without_autocast_tf32_is_another_precision(used):
    network, x = make_network().train(), torch.randn(1, 1, 16, 16, 16)
    with mode(True, None), table.trial(trial_key(network, x)):
        assert measured.takes(network, x)
        try:
            torch.backends.cuda.matmul.allow_tf32 = True
            assert not measured.takes(network, x)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("backend", ["plain", "triton"])
def test_other_backends_do_not_ask_what_was_measured(used, monkeypatch, backend):
    network, x = make_network().train(), torch.randn(1, 1, 16, 16, 16)
    monkeypatch.setattr(table, "_read_keys", None)
    with mode(True), using_backend(backend):
        network(x)
    assert len(used) == (BLOCKS if backend == "triton" else 0)


def test_a_function_transform_or_a_forward_gradient_is_left_to_the_plain_modules(used):
    network, x = make_network().train(), torch.randn(1, 1, 16, 16, 16)
    answers = []

    def ask(batch: torch.Tensor) -> torch.Tensor:
        answers.append(measured.takes(network, x))
        return batch

    with mode(True), table.trial(trial_key(network, x)):
        ask(x)
        torch.func.vmap(ask)(x)
        with torch.autograd.forward_ad.dual_level():
            ask(x)
    assert answers == [True, False, False]


def test_threads_do_not_change_each_others_backend(used, monkeypatch):
    """As under DataParallel: one begins before and ends while another one, which is not measured, computes."""
    first, second, x = make_network().eval(), make_network().eval(), torch.randn(1, 1, 16, 16, 16)
    second.stem.register_forward_hook(lambda *_: done.wait(60) and None)
    inside, done = threading.Event(), threading.Event()
    run = triton_block.run
    monkeypatch.setattr(triton_block, "run", lambda block, x: (inside.set(), run(block, x))[1])

    def compute_second():
        inside.wait(60)
        with mode(False):
            second(x)

    with mode(False):
        key = trial_key(make_network().eval(), x)
    thread = threading.Thread(target=compute_second)
    thread.start()
    with table.trial(key), mode(False):
        first(x)
        done.set()
        thread.join()
        assert dispatch.get_backend() == "auto"
    assert len(used) == BLOCKS and {id(block) for block in used} <= {id(module) for module in first.modules()}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled_code_uses_what_was_measured_compiled_in_one_graph(used, training):
    network, x = make_network().train(training), torch.randn(1, 1, 16, 16, 16)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with mode(training):
        key = trial_key(network, x, compiled=True)
        with table.trial(key):
            network(x)
            assert used == []  # measured compiled only
            results = [compiled(torch.cat([x] * count, 2)) for count in (1, 2, 3, 1)]
        with using_backend("triton"):
            expected = network(x)
        with using_backend("plain"):
            plain = [network(torch.cat([x] * count, 2)) for count in (1, 2, 3)]
    first = [result[0] if training else result for result in results]
    assert torch.equal(first[0], expected[0] if training else expected) and torch.equal(first[0], first[3])
    for result, other in zip(first[1:], plain[1:]):
        assert torch.equal(result, other[0] if training else other)
    assert not torch.equal(first[0], plain[0][0] if training else plain[0])
