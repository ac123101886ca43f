"""GPU memory of a training step for each variant, and what fits a card: estimate, table behind it, measurement.

``python -m mednext_monai.planning.memory`` measures the table again and prints it. The measurement needs neither a GPU
nor much memory: PyTorch's fake tensors have shapes and types but no data, so the step can be traced at the published
size of 2 x 128^3 voxels while all live tensors are counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product

__all__ = [
    "BYTES_PER_VOXEL",
    "CARDS_GIB",
    "CHECKPOINTING",
    "estimate_training_memory",
    "fastest_fitting",
    "measure",
    "published_setting",
]

# The settings of gradient checkpointing by their names in a plan, fastest first, with the values of the option.
CHECKPOINTING: dict[str, bool | str] = {"off": False, "expansion": "expansion", "block": "block"}

# Live bytes per voxel of the batch in a training step (mixed precision, five outputs with Dice and cross-entropy) for
# each of these settings, without parameters and their gradients: at the backward peak in the full-resolution blocks,
# and at the loss. BYTES_PER_VOXEL_AND_CLASS is added for each class; the larger sum is the peak.
# Measured by `measure` at 2 x 128^3 with 2, 3, 150 and 250 classes, torch 2.13.
BYTES_PER_VOXEL = {  # off, expansion, block
    ("S", 3): ((4268.5, 4119.3), (1976.3, 1023.3), (1588.4, 507.5)),
    ("S", 5): ((4268.3, 4119.1), (1976.1, 1023.1), (1588.0, 507.0)),
    ("B", 3): ((4599.4, 4450.1), (1971.5, 1018.5), (1583.7, 502.7)),
    ("B", 5): ((4599.2, 4449.9), (1971.3, 1018.3), (1583.3, 502.3)),
    ("M", 3): ((6506.0, 6356.8), (2261.9, 1436.9), (1725.5, 708.5)),
    ("M", 5): ((6505.7, 6356.4), (2261.5, 1436.5), (1724.8, 707.8)),
    ("L", 3): ((9140.4, 8927.1), (2676.8, 1476.8), (2099.4, 707.3)),
    ("L", 5): ((9139.8, 8926.5), (2676.3, 1476.2), (2098.3, 706.2)),
}
BYTES_PER_VOXEL_AND_CLASS = (2.29, 22.57)
BYTES_PER_VOXEL_2D = {  # the same at 16 x 512^2; in 2D the lower resolutions have a larger share
    ("S", 3): ((6211.6, 6023.6), (2500.2, 1485.0), (1872.1, 728.8)),
    ("S", 5): ((6211.5, 6023.5), (2500.2, 1484.9), (1872.0, 728.7)),
    ("B", 3): ((7284.2, 7096.2), (2495.5, 1480.2), (1867.3, 724.0)),
    ("B", 5): ((7284.2, 7096.2), (2495.5, 1480.2), (1867.2, 724.0)),
    ("M", 3): ((10833.0, 10645.0), (3080.9, 2193.6), (2156.7, 1077.4)),
    ("M", 5): ((10832.9, 10644.9), (3080.8, 2193.5), (2156.6, 1077.3)),
    ("L", 3): ((18882.1, 18630.1), (3837.3, 2567.5), (2705.1, 1243.3)),
    ("L", 5): ((18882.0, 18630.0), (3837.2, 2567.4), (2704.9, 1243.1)),
}
BYTES_PER_VOXEL_AND_CLASS_2D = (2.66, 23.33)
BYTES_PER_PARAMETER = 16  # float32 weight and gradient, and AdamW's two moments
FIXED_GIB = 1.0  # rough guess: CUDA context, cuDNN's workspace and memory left by its algorithm search
MARGIN = 1.1  # fragmentation of the caching allocator
CARDS_GIB = (8, 11, 16, 24, 40, 80)  # usual graphics cards, if none is available to query


def estimate_training_memory(
    patch_size: Sequence[int], batch_size: int, out_channels: int
) -> dict[str, dict[str, float]]:
    """
    Estimate the GPU memory of training with mixed precision for the eight variants.

    The estimate is the live tensors as counted by :py:func:`measure`, plus parameters, gradients and optimizer state,
    times 1.1 for fragmentation, plus 1 GiB. It has not been verified on a GPU by us. Compared with published values for
    the authors' code, it is within 10% for S (20 GB at 2 x 80 x 160 x 160, MIC-DKFZ/MedNeXt issue 7), but gives 11.1
    GiB for L k3 at 2 x 128^3, where 17.3 GB is reported (Isensee et al. 2024, a value that users question). For B k3 at
    1 x 128^3, the live tensors are 9.0 GiB off, 3.8 GiB with expansion and 3.1 GiB with block, where the package
    mednext-accel measured peaks of 9.4, 3.8 and 3.2 GiB in its own modules. The convolution library may choose a large
    workspace, so allow some margin.

    Args:
        patch_size: patch size in voxels per axis, two or three.
        batch_size: number of patches per batch.
        out_channels: number of classes, background included.

    Returns:
        by ``"S_k3"``, ``"S_k5"``, ... ``"L_k5"``: GiB by the settings in ``CHECKPOINTING``.
    """
    voxels = batch_size * math.prod(patch_size)
    tables = (BYTES_PER_VOXEL, BYTES_PER_VOXEL_AND_CLASS)
    if len(patch_size) == 2:
        tables = (BYTES_PER_VOXEL_2D, BYTES_PER_VOXEL_AND_CLASS_2D)
    estimate: dict[str, dict[str, float]] = {}
    for (variant, kernel), measured in tables[0].items():
        states = BYTES_PER_PARAMETER * _count_parameters(variant, kernel, len(patch_size))
        row = estimate[f"{variant}_k{kernel}"] = {}
        for setting, bytes_per_voxel in zip(CHECKPOINTING, measured):
            peak = max(b + per_class * out_channels for b, per_class in zip(bytes_per_voxel, tables[1]))
            row[setting] = MARGIN * (voxels * peak + states) / 2**30 + FIXED_GIB
    return estimate


def fastest_fitting(estimate: Mapping[str, float], gpu_memory: float) -> str | None:
    """
    Return the setting that computes least again among those that fit a card, or ``None`` if none fits.

    Args:
        estimate: GiB by setting, of one variant of :py:func:`estimate_training_memory`.
        gpu_memory: memory of the card in GiB.
    """
    return next((setting for setting in CHECKPOINTING if estimate[setting] <= gpu_memory), None)


def published_setting(name: str) -> str:
    """Return the published setting of a variant such as ``"S_k3"``: block for M and L, off for S and B."""
    from ..networks import VARIANTS

    return "block" if VARIANTS[name.partition("_")[0]].use_checkpoint else "off"


@lru_cache
def _count_parameters(variant: str, kernel_size: int, spatial_dims: int) -> int:
    """Return the number of parameters with one input channel, three classes and the deep-supervision heads."""
    import torch

    from ..networks import create_mednext

    with torch.device("meta"):  # shapes without memory
        network = create_mednext(variant, kernel_size, spatial_dims, out_channels=3, deep_supervision=True)
    return sum(parameter.numel() for parameter in network.parameters())


def measure(
    variant: str,
    kernel_size: int,
    out_channels: int,
    use_checkpoint: bool | str | None = None,
    size: int = 128,
    batch_size: int = 2,
    spatial_dims: int = 3,
) -> float:
    """
    Return the peak of live tensor bytes per voxel in a training step, without parameters and their gradients.

    The step runs with fake tensors on the CPU under bfloat16 autocast. Normalization and loss get float32 input, as
    under autocast on CUDA, but not on the CPU.

    Args:
        variant: a name in ``networks.VARIANTS``.
        kernel_size: size of the depthwise kernels in voxels.
        out_channels: number of classes, background included.
        use_checkpoint: as for :py:func:`~mednext_monai.networks.create_mednext`. Defaults to ``None``, as published.
        size: size of the cubic patch in voxels per axis, a multiple of 16. Defaults to 128.
        batch_size: number of patches per batch. Defaults to 2.
        spatial_dims: axes of the network, 2 or 3. Defaults to 3.

    Returns:
        bytes per voxel of the batch.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    from ..networks import create_mednext

    class LiveBytes(TorchDispatchMode):
        """Total size of the live storages that operations have created, and its maximum."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.live = self.peak = 0

        def _add(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._remove, key)

        def _remove(self, key: int) -> None:
            self.live -= self.sizes.pop(key)

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tree_map_only(torch.Tensor, self._add, out)
            return out

    def loss(logits: torch.Tensor) -> torch.Tensor:
        """Create the tensors of monai.losses.DiceCELoss, which itself reads a value that fake tensors lack."""
        label = torch.zeros_like(logits[:, :1])
        probability = logits.softmax(1)[:, 1:]
        one_hot = torch.zeros_like(logits).scatter_(1, label.long(), 1)[:, 1:]
        axes = tuple(range(2, logits.dim()))
        dice = 2 * (one_hot * probability).sum(axes) / (one_hot.sum(axes) + probability.sum(axes) + 1e-5)
        return torch.nn.functional.cross_entropy(logits, label[:, 0].long()) - dice.mean()

    with FakeTensorMode():
        network = create_mednext(
            variant, kernel_size, spatial_dims, 1, out_channels, deep_supervision=True, use_checkpoint=use_checkpoint
        ).train()
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        image = torch.empty(batch_size, 1, *[size] * spatial_dims)
        counter = LiveBytes()
        with counter:
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(image)
            torch.stack([loss(output.float()) for output in logits]).sum().backward()
        gradients = sum(p.grad.untyped_storage().nbytes() for p in network.parameters() if p.grad is not None)
    return (counter.peak - gradients) / (batch_size * size**spatial_dims)


def main() -> None:
    """Measure the table again and print it, with each peak as a linear function of the number of classes."""
    shapes = [((128, 2, 3), key) for key in BYTES_PER_VOXEL] + [((512, 16, 2), key) for key in BYTES_PER_VOXEL_2D]
    for ((size, batch_size, dims), (variant, kernel)), (setting, value) in product(shapes, CHECKPOINTING.items()):
        two, three, many, more = (
            measure(variant, kernel, classes, value, size, batch_size, dims) for classes in (2, 3, 150, 250)
        )
        slopes = (three - two, (more - many) / 100)
        offsets = (two - 2 * slopes[0], many - 150 * slopes[1])
        lines = ", ".join(f"{offset:.1f} + {slope:.2f} per class" for offset, slope in zip(offsets, slopes))
        print(f"{variant} k{kernel} {setting}, {dims}D: {lines}", flush=True)


if __name__ == "__main__":
    main()
