"""The network on a GPU: the function that it is on a CPU, with blocks recomputed or not, compiled or not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.tuning import make_network

from mednext_monai.networks import using_backend


@pytest.fixture(autouse=True)
def exact_products():
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False), using_backend("plain"):
        yield


def step(network, x: torch.Tensor, autocast: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the outputs of a training step and the gradients of all parameters."""
    network.zero_grad()
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        outputs = network(x)
    sum(
        (output.float() * torch.linspace(0, 1, output.shape[-1], device=x.device)).mean() for output in outputs
    ).backward()
    parameters = getattr(network, "_orig_mod", network).named_parameters()
    found = {f"output {number}": output.detach() for number, output in enumerate(outputs)}
    return {**found, **{name: parameter.grad for name, parameter in parameters if not name.endswith("conv1.bias")}}


def largest_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a tensor's elements, relative to its largest element."""
    sizes = {name: float(tensor.double().abs().max()) for name, tensor in exact.items()}
    smallest = 1e-4 * max(sizes.values())  # below, gradients are rounding errors of others
    return max(
        float((found[name].cpu().double() - tensor.cpu().double()).abs().max()) / max(sizes[name], smallest)
        for name, tensor in exact.items()
    )


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_outputs_and_gradients_are_those_of_a_cpu_in_float64(device, kernel_size):
    x = torch.randn(2, 1, 32, 48, 32, generator=torch.Generator().manual_seed(0))
    exact = step(make_network(kernel_size=kernel_size).double(), x.double())
    found = step(make_network(kernel_size=kernel_size).to(device), x.to(device))
    assert found["stem.weight"].device.type == device.type
    assert largest_error(found, exact) < 1e-3


def test_recomputed_blocks_have_the_same_gradients_under_autocast(device):
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    x = torch.randn(1, 1, 32, 32, 32, device=device)
    stored, again, recomputed = (
        step(make_network(use_checkpoint=checkpoint).to(device).train(), x, dtype)
        for checkpoint in (False, False, True)
    )
    noise = largest_error(again, stored)  # of what is not deterministic
    assert largest_error(recomputed, stored) <= max(2 * noise, 1e-6)


def test_recomputed_blocks_need_less_memory(gpu):
    peaks = []
    for checkpoint in (False, True):
        network = make_network(base_channels=32, use_checkpoint=checkpoint).to(gpu).train()
        x = torch.randn(1, 1, 64, 64, 64, device=gpu)
        step(network, x, torch.float16)
        torch.cuda.reset_peak_memory_stats(gpu)
        step(network, x, torch.float16)
        peaks.append(torch.cuda.max_memory_allocated(gpu))
        del network
    assert all(second < 0.7 * first for first, second in pairwise(peaks))


# What is compiled, by name: arguments of the network. More ways to recompute blocks belong here.
COMPILED = {"stored": {}, "recomputed": {"use_checkpoint": True}}


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_network_computes_the_same(device, name):
    network = make_network(**COMPILED[name]).to(device).train()
    compiled = torch.compile(network, backend="inductor" if device.type == "cuda" else "aot_eager", fullgraph=True)
    x = torch.randn(1, 1, 32, 32, 32, device=device)
    assert largest_error(step(compiled, x), step(network, x)) < 1e-3
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-3)
