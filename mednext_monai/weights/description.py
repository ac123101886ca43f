"""Which MedNeXt a state dict belongs to, inferred from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..networks import VARIANTS, MedNeXt
from .state_dict import plain_names

__all__ = ["NetworkDescription", "compare_shapes", "describe", "has_monai_names", "summarize"]

ENCODER = [f"enc_block_{level}" for level in range(4)]
DECODER = [f"dec_block_{level}" for level in (3, 2, 1, 0)]
STAGES = [*ENCODER, "bottleneck", *DECODER]  # in the order of the arguments of MedNeXt
MAX_SHOWN = 8  # tensors named in a message
MONAI_NETWORK = "MONAI's own MedNeXt, which `mednext convert` converts (S only)"


class NetworkDescription(NamedTuple):
    """The arguments of :py:class:`MedNeXt` that can be inferred from its tensors, and the published variant.

    ``norm``, ``use_residual`` and ``use_checkpoint`` leave no trace in the tensors and are not included.
    """

    variant: str | None  # a name in VARIANTS; None for any other network
    encoder_kernel_size: int
    decoder_kernel_size: int
    spatial_dims: int
    in_channels: int
    out_channels: int
    base_channels: int
    expansion_ratio: tuple[int, ...]
    block_counts: tuple[int, ...]
    use_residual_resampling: bool
    use_grn: bool
    deep_supervision: bool

    def network_arguments(self) -> dict:
        """Return the arguments with which :py:class:`MedNeXt` has tensors of these names and shapes."""
        return {name: value for name, value in self._asdict().items() if name != "variant"}

    def __str__(self) -> str:
        encoder, decoder = self.encoder_kernel_size, self.decoder_kernel_size
        parts = [
            f"MedNeXt-{self.variant}" if self.variant else "MedNeXt, not a published variant",
            f"kernel {encoder}" if encoder == decoder else f"kernel {encoder} in the encoder and {decoder} after it",
            f"{self.spatial_dims}D",
            f"{self.in_channels} input channel{'' if self.in_channels == 1 else 's'}",
            f"{self.out_channels} class{'' if self.out_channels == 1 else 'es'}",
            f"{'with' if self.deep_supervision else 'without'} deep supervision heads",
        ]
        if not self.variant:
            parts += [
                f"{self.base_channels} base channels",
                f"expansion ratios {'-'.join(map(str, self.expansion_ratio))}",
                f"blocks {'-'.join(map(str, self.block_counts))}",
            ]
            parts += ["without residuals in resampling"] * (not self.use_residual_resampling)
            parts += ["with GRN"] * self.use_grn
        return ", ".join(parts)


def describe(state_dict: Mapping[str, torch.Tensor]) -> NetworkDescription:
    """
    Infer which MedNeXt a state dict belongs to.

    Args:
        state_dict: tensors under the names of this package, which are the authors'.

    Raises:
        ValueError: if the tensors are not those of a MedNeXt, naming missing, unexpected and misshaped ones.
    """
    state_dict = plain_names(state_dict)
    needed = ["stem.weight", "out_0.conv_out.weight", "down_0.conv1.weight"]
    needed += [f"{stage}.0.{conv}.weight" for stage in STAGES for conv in ("conv1", "conv2")]
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise ValueError(
            f"these are not the tensors of a MedNeXt: {_some(missing)} missing among {len(state_dict)} tensors "
            f"({_some(list(state_dict), 3)})." + (f" They are those of {MONAI_NETWORK}." * has_monai_names(state_dict))
        )
    dimensions = {state_dict[name].ndim for name in needed}
    if dimensions not in ({4}, {5}):
        raise ValueError(f"these are not the tensors of a MedNeXt: kernels of {sorted(dimensions)} dimensions.")
    description = _infer(state_dict)
    try:
        with torch.device("meta"):
            expected = MedNeXt(**description.network_arguments()).state_dict()
    except (ValueError, KeyError) as error:
        raise ValueError(f"these are not the tensors of a MedNeXt: {error}") from error
    differences = compare_shapes(state_dict, expected, found="found", wanted="expected")
    if differences:
        raise ValueError(f"these are not the tensors of a MedNeXt; compared with {description}:\n{differences}")
    return description


def has_monai_names(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the tensors have the names of MONAI's own ``MedNeXt``."""
    return any(name.startswith("enc_stages.") for name in state_dict)


def summarize(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return the description of a state dict as text for logs and messages, whatever network it belongs to."""
    try:
        return str(describe(state_dict))
    except ValueError:
        return MONAI_NETWORK if has_monai_names(state_dict) else "not a MedNeXt"


def compare_shapes(
    state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], found: str, wanted: str
) -> str:
    """Return one indented line for each kind of difference between two state dicts, or an empty string."""
    shapes = [
        f"  {name}: {tuple(state_dict[name].shape)} {found}, {tuple(tensor.shape)} {wanted}"
        for name, tensor in expected.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    lines = shapes[:MAX_SHOWN]
    lines += [f"  ... and {len(shapes) - MAX_SHOWN} more"] * (len(shapes) > MAX_SHOWN)
    for one, other, text in ((state_dict, expected, found), (expected, state_dict, wanted)):
        only = [name for name in one if name not in other]
        lines += [f"  only {text}: {_some(only)}"] * bool(only)
    return "\n".join(lines)


def _infer(state_dict: Mapping[str, torch.Tensor]) -> NetworkDescription:
    """Infer the arguments from names and shapes, without checking them."""
    stem = state_dict["stem.weight"]
    base_channels = int(stem.shape[0])
    expansions = [state_dict[f"{stage}.0.conv2.weight"] for stage in STAGES]
    ratios = tuple(int(weight.shape[0] // max(1, weight.shape[1])) for weight in expansions)
    counts = tuple(len({name.split(".")[1] for name in state_dict if name.startswith(f"{stage}.")}) for stage in STAGES)
    use_grn = "enc_block_0.0.grn_gamma" in state_dict
    use_residual_resampling = "down_0.res_conv.weight" in state_dict
    found = (ratios, counts, use_grn, base_channels) if use_residual_resampling else None
    rows = {(row.expansion_ratio, row.block_counts, row.use_grn, row.base_channels): v for v, row in VARIANTS.items()}
    return NetworkDescription(
        variant=rows.get(found) if found else None,
        encoder_kernel_size=int(state_dict["enc_block_0.0.conv1.weight"].shape[-1]),
        decoder_kernel_size=int(state_dict["bottleneck.0.conv1.weight"].shape[-1]),
        spatial_dims=stem.ndim - 2,
        in_channels=int(stem.shape[1]),
        out_channels=int(state_dict["out_0.conv_out.weight"].shape[1]),
        base_channels=base_channels,
        expansion_ratio=ratios,
        block_counts=counts,
        use_residual_resampling=use_residual_resampling,
        use_grn=use_grn,
        deep_supervision="out_1.conv_out.weight" in state_dict,
    )


def _some(names: list[str], limit: int = MAX_SHOWN) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
