"""The networks that are compared: the same weights and the same input.

- ours: this package with the backend in use.
- plain: this package's plain modules.
- monai: ``monai.networks.nets.MedNeXt`` with the arguments of ``MedNeXtS``; its other variants are other networks.
- original: the authors' code, from a checkout of MIC-DKFZ/MedNeXt.

All but ours also under ``torch.compile``, where ours is the plain modules.
"""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import MedNeXt as MonaiMedNeXt

from mednext_monai.networks import MedNeXt, create_mednext, get_backend, using_backend
from mednext_monai.weights.conversion import from_monai, to_monai
from mednext_monai.weights.state_dict import DUMMY

__all__ = ["COMPILED", "IN_CHANNELS", "OUT_CHANNELS", "Contestant", "autocast", "build", "names_for", "without"]

IN_CHANNELS, OUT_CHANNELS = 1, 3
COMMON = {"in_channels": IN_CHANNELS, "out_channels": OUT_CHANNELS, "deep_supervision": True}
COMPILED = " compiled"
UPSTREAM_MODULE = "nnunet_mednext.network_architecture.mednextv1.create_mednext_v1"


@dataclass
class Contestant:
    """A network and how to run it."""

    kind: str  # one of options.CONTESTANTS
    network: torch.nn.Module  # holds the parameters
    function: Callable[[torch.Tensor], object]  # the network, or the result of torch.compile
    backend: str

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs, full resolution first."""
        with using_backend(self.backend):
            outputs = self.function(x)
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients of the parameters by our names."""
        parameters = self.network.named_parameters()
        gradients = {name: p.grad for name, p in parameters if name.split(".")[-1] != DUMMY}
        return from_monai(gradients) if self.kind == "monai" else gradients


def names_for(options: Namespace, variant: str) -> list[str]:
    """Return the names of the contestants that exist for this variant, ours first."""
    names = [name for name in options.contestants if name not in without(options, variant)]
    return names + [name + COMPILED for name in names if name != "ours"] * options.compile


def build(options: Namespace, variant: str, names: Sequence[str], training: bool) -> dict[str, Contestant]:
    """
    Build contestants with the same weights, in training mode with five outputs or in evaluation mode with one.

    A compiled contestant shares its parameters with the eager one of the same name.
    """
    if any(name.endswith(COMPILED) for name in names):
        torch.compiler.reset()  # otherwise torch gives up compiling after eight versions of the same code
    letter, kernel_size = variant.split("_k")  # "S_k3"
    networks, contestants = {}, {}
    for name in names:
        kind = name.removesuffix(COMPILED)
        if kind not in networks:
            networks[kind] = BUILDERS[kind](options, letter, int(kernel_size)).to(options.device).train(training)
            if kind in ("monai", "original"):  # the original returns five outputs in both modes unless told otherwise
                networks[kind].do_ds = training
        network = networks[kind]
        function = network if name == kind else torch.compile(network, dynamic=False)
        contestants[name] = Contestant(kind, network, function, get_backend() if kind == "ours" else "plain")
    return contestants


def _ours(options: Namespace, letter: str, kernel_size: int) -> MedNeXt:
    """Build our network; its weights are always the same."""
    given = {"use_checkpoint": None if options.checkpoint else False, "base_channels": options.base_channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_mednext(letter, kernel_size, **COMMON, **given)


def _monai(options: Namespace, letter: str, kernel_size: int) -> MonaiMedNeXt:
    """Build MONAI's ``MedNeXtS``, written out because that does not take a number of channels."""
    given = {"init_filters": options.base_channels, "kernel_size": kernel_size, "use_residual_connection": True}
    network = MonaiMedNeXt(**COMMON, **given)
    network.load_state_dict(to_monai(_ours(options, letter, kernel_size).state_dict()))
    return network


def _original(options: Namespace, letter: str, kernel_size: int) -> torch.nn.Module:
    folder = Path(options.upstream).resolve()
    expected = folder.joinpath(*UPSTREAM_MODULE.split(".")).with_suffix(".py")
    if not expected.is_file():
        raise ValueError(f"--upstream must be a checkout of MIC-DKFZ/MedNeXt, but {expected} does not exist.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        create = importlib.import_module(UPSTREAM_MODULE).create_mednext_v1
    except ImportError as error:
        raise ValueError(f"--upstream {folder} cannot be imported: {error}") from error
    network = create(IN_CHANNELS, OUT_CHANNELS, letter, kernel_size=kernel_size, deep_supervision=True)
    keys = network.load_state_dict(_ours(options, letter, kernel_size).state_dict(), strict=False)
    if keys.unexpected_keys or any(key.split(".")[-1] != DUMMY for key in keys.missing_keys):
        raise ValueError(f"--upstream {options.upstream} has a network with other parameters: {keys}.")
    return network


BUILDERS = {"ours": _ours, "plain": _ours, "monai": _monai, "original": _original}


def without(options: Namespace, variant: str) -> dict[str, str]:
    """Return the contestants of the run that cannot be built for this variant, and why."""
    reasons = {}
    if "original" in options.contestants and not options.upstream:
        reasons["original"] = "needs --upstream, a checkout of MIC-DKFZ/MedNeXt"
    if "monai" in options.contestants and not variant.startswith("S"):
        reasons["monai"] = f"its {variant[0]} is another network"
    return reasons


def autocast(options: Namespace, kind: str = "ours") -> AbstractContextManager:
    """Return the context of a contestant's type: autocast for bf16 and fp16, disabled for float32."""
    name = options.dtype if kind == "ours" else options.others_dtype or options.dtype
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}[name]
    return torch.autocast(torch.device(options.device).type, dtype, enabled=dtype is not None)
