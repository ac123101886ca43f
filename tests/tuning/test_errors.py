"""What counts as exact: no less accurate than the plain modules, in every tensor, on average and at the worst voxel."""

from __future__ import annotations

import math

import pytest
import torch

from mednext_monai.tuning.errors import Error, error, worst

BIAS, NORM = "gradient of a.conv1.bias", "gradient of a.norm.bias"


def test_the_error_is_that_of_mean_and_largest_relative_to_a_size():
    exact = torch.zeros(4)
    assert error(torch.tensor([0.0, 3.0, 0.0, -4.0]), exact, Error(5.0, 2.0)) == Error(0.5, 2.0)
    assert error(torch.zeros(3), exact, Error(1.0, 1.0)) == Error(math.inf, math.inf)


def results(changes: dict[str, torch.Tensor] | None = None, noise: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        "output 0": torch.randn(1000, generator=generator),
        "gradient of a.weight": 10 * torch.randn(1000, generator=generator),
        NORM: torch.randn(8, generator=generator),
        BIAS: torch.zeros(8),
        "gradient of b.weight": torch.zeros(8),
    }
    found = {name: tensor + noise * torch.randn_like(tensor) for name, tensor in found.items()}
    return {**found, **(changes or {})}


def verdict(changes: dict[str, torch.Tensor], noise: float = 0.0, type: str = "float16") -> tuple[str, bool]:
    torch.manual_seed(0)
    plain = results(noise=noise)
    name, _, _, is_exact = worst(results(changes, noise), plain, results(), type)
    return name, is_exact


def test_noise_like_that_of_the_plain_modules_is_exact_however_large_it_is():
    assert verdict({}, noise=0.05)[1]
    assert verdict({}, noise=0)[1]
    assert verdict({}, noise=2.0**-10)[1]


@pytest.mark.parametrize(
    "name, change",
    [
        ("output 0", lambda x: 1.01 * x),
        ("output 0", lambda x: x + torch.nn.functional.one_hot(torch.tensor(500), 1000)),  # one voxel in a thousand
        ("output 0", lambda x: torch.full_like(x, math.nan)),
        ("output 0", lambda x: x[:999]),
        ("gradient of a.weight", lambda x: 0.99 * x),
        (NORM, lambda x: -x),
        (BIAS, lambda x: x + 3),  # that of the norm's bias is 1
        ("gradient of b.weight", lambda x: x + math.inf),
        ("gradient of b.weight", lambda x: x + 1.0),
    ],
)
def test_a_wrong_tensor_is_found_and_named(name, change):
    assert verdict({name: change(results()[name])}, noise=2.0**-12) == (name, False)


@pytest.mark.parametrize("type, allowed", [("float32", 2.0**-16), ("float16", 2.0**-8), ("bfloat16", 2.0**-5)])
def test_a_few_roundings_of_the_type_are_exact_and_more_are_not(type, allowed):
    output = results()["output 0"]
    assert verdict({"output 0": output * (1 + allowed)}, type=type)[1]
    assert not verdict({"output 0": output * (1 + 4 * allowed)}, type=type)[1]


def test_rounding_where_the_exact_gradient_is_nothing_does_not_count():
    small = 1e-3 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    assert verdict({BIAS: small, "gradient of b.weight": 1e-2 * small})[1]
