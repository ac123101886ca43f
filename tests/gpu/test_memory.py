"""The memory of a training step beside the estimate of a plan, by which a user chooses a variant."""

from __future__ import annotations

import pytest
import torch

from mednext_monai.losses import DiceCELoss
from mednext_monai.networks import create_mednext, using_backend
from mednext_monai.planning.memory import estimate_training_memory


def peak_of_two_steps(device: torch.device, variant: str, kernel_size: int, size: int, batch_size: int) -> float:
    """Return the peak of allocated GiB of two steps as in a bundle: mixed precision, five outputs, AdamW."""
    from monai.losses import DeepSupervisionLoss

    network = create_mednext(variant, kernel_size, out_channels=2, deep_supervision=True).to(device).train()
    optimizer, scaler = torch.optim.AdamW(network.parameters(), lr=1e-3), torch.amp.GradScaler(device.type)
    loss = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))
    image = torch.randn(batch_size, 1, size, size, size, device=device)
    label = (image > 1).float()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
            value = loss(network(image), label)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.isfinite(value)
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


@pytest.mark.parametrize("variant", ["S", "B", "M", "L"])
def test_the_peak_of_a_training_step_is_near_the_plans_estimate(gpu, variant):
    size, batch_size = 128, 2
    estimate = estimate_training_memory([size] * 3, batch_size, 2)[f"{variant}_k3"]
    total = torch.cuda.get_device_properties(gpu).total_memory / 2**30
    if estimate > 0.9 * total:
        pytest.skip(f"needs {estimate:.0f} GiB of GPU memory, there are {total:.0f}")
    with using_backend("plain"):
        peak = peak_of_two_steps(gpu, variant, 3, size, batch_size)
    print(f"MedNeXt-{variant} k3, 2 x 128^3: {peak:.1f} GiB allocated, estimate {estimate:.1f} GiB")
    assert 0.6 * estimate < peak < 1.15 * estimate


def test_the_step_that_is_measured_is_one(device):
    assert peak_of_two_steps(device, "S", 3, 32, 1) >= 0
