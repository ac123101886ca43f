"""What ``mednext tune`` measures: the network of a bundle, with the inputs that its training and its inference have."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from ..errors import diagnosis
from ..options import literal

__all__ = ["Case", "bundle_cases"]


class Case(NamedTuple):
    """One measurement."""

    network: dict[str, Any]  # arguments of networks.MedNeXt
    shape: list[int]  # of the input, (B, C, D, H, W)
    autocast: str | None  # "float16" or "bfloat16"; None: float32 without autocast
    training: bool  # forward and backward in training mode; False: forward in evaluation mode
    compiled: bool  # by torch.compile

    def __str__(self) -> str:
        batch, channels, *size = self.shape
        what = "training" if self.training else "inference"
        shape = f"{batch} x {channels} x {' x '.join(map(str, size))}"
        return f"{what}, {shape}, {self.autocast or 'float32'}{', compiled' if self.compiled else ''}"


def bundle_cases(bundle: str | PathLike[str], options: Mapping[str, Any], compile: bool = True) -> list[Case]:
    """
    Return the cases of a bundle: a training step, a window of the inference, and a batch of the validation on patches.

    Args:
        bundle: its folder.
        options: of its ``train.json``, by name.
        compile: whether compiled code is measured, too. Defaults to ``True``.

    Raises:
        ValueError: if an option contradicts others.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(f"{bundle}/configs/train.json")
    parser.update({name: literal(value) for name, value in {**options, "bundle_root": str(bundle)}.items()})
    parser.parse(reset=True)
    try:
        network = _arguments(parser.get_parsed_content("network_def"))
        patch, batch = parser.get_parsed_content("patch"), parser.get_parsed_content("batch_size")
    except RuntimeError as error:  # MONAI's, about an item of the config
        raise ValueError(diagnosis(error) or str(error)) from error
    autocast = "float16" if parser.get_parsed_content("use_amp") else None  # torch.autocast's own choice on a GPU
    steps = [(batch, True), *((windows, False) for windows in sorted({1, batch}))]
    return [
        Case(network, [count, network["in_channels"], *patch], autocast, training, compiled)
        for compiled in ((False, True) if compile else (False,))
        for count, training in steps
    ]


def _arguments(network: Any) -> dict[str, Any]:
    """Return the arguments of :py:class:`~mednext_monai.networks.MedNeXt` with which a network was built."""
    from ..weights import describe

    arguments = describe(network.state_dict()).network_arguments()
    return {**arguments, "use_checkpoint": network.bottleneck[0].use_checkpoint}
