"""The networks that are compared: one set of weights, one input, one function.

- ours: this package with the backend in use, see ``mednext_monai.networks.backend``.
- plain: this package's plain modules, the readable reference.
- monai: ``monai.networks.nets.MedNeXt`` with the arguments of ``MedNeXtS``; its other variants are other networks.
- original: the authors' code, from a checkout of MIC-DKFZ/MedNeXt.

All but ours also under ``torch.compile``, where ours is the plain path.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import MedNeXt as MonaiMedNeXt

from mednext_monai.networks import MedNeXt, create_mednext, get_backend, using_backend
from mednext_monai.weights.conversion import from_monai, to_monai
from mednext_monai.weights.state_dict import DUMMY

from .options import Options, VariantName
from .timing import OURS

__all__ = [
    "Contestant",
    "Reference",
    "autocast",
    "build",
    "make_input",
    "names_for",
    "output_gradients",
    "relative_error",
    "run_reference",
    "train_once",
]

IN_CHANNELS, OUT_CHANNELS = 1, 3
COMPILED = " compiled"
UPSTREAM_MODULE = "nnunet_mednext.network_architecture.mednextv1.create_mednext_v1"


@dataclass
class Contestant:
    """A network and how to run it."""

    name: str
    network: torch.nn.Module  # holds the parameters
    function: Callable[[torch.Tensor], object]  # the network, or what torch.compile made of it
    backend: str
    to_our_names: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's network, under either backend."""
        return self.name.removesuffix(COMPILED) in (OURS, "plain")

    def set_training(self, training: bool) -> None:
        """Switch to training, with the outputs of the deep supervision, or to evaluation, with one output."""
        self.network.train(training)
        if not self.is_ours:  # the original returns five outputs in both modes unless told otherwise
            self.network.do_ds = training

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs, full resolution first."""
        with using_backend(self.backend):
            outputs = self.function(x)
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients of the parameters by our names."""
        parameters = self.network.named_parameters()
        return dict(self.to_our_names({name: p.grad for name, p in parameters if name.split(".")[-1] != DUMMY}))


def names_for(options: Options, variant: VariantName) -> list[str]:
    """Return the names of the contestants that there are for this variant, ours first."""
    names = [name for name in options.contestants if name != "original" or options.upstream]
    names = [name for name in names if name != "monai" or variant.letter == "S"]
    return names + [name + COMPILED for name in names if name != OURS] * options.compile


def build(options: Options, variant: VariantName, names: Sequence[str], training: bool) -> list[Contestant]:
    """
    Build contestants with the same weights, in training or evaluation mode.

    Args:
        options: those of the run.
        variant: which network.
        names: out of :py:func:`names_for`; a compiled one shares its parameters with the one that is not.
        training: whether to train, with deep supervision, or to evaluate.

    Raises:
        ValueError: when the checkout of the original is none.
    """
    if any(name.endswith(COMPILED) for name in names):
        torch.compiler.reset()  # beyond eight versions of one piece of code it would give up compiling
    ours = _our_network(options, variant)
    built: dict[str, Contestant] = {}
    contestants = []
    for name in names:
        kind = name.removesuffix(COMPILED)
        if kind not in built:
            built[kind] = _build_one(kind, ours, options, variant)
            built[kind].set_training(training)
        eager = built[kind]
        if name != kind:
            compiled = torch.compile(eager.network, dynamic=False)
            eager = Contestant(name, eager.network, compiled, eager.backend, eager.to_our_names)
        contestants.append(eager)
    return contestants


def _our_network(options: Options, variant: VariantName) -> MedNeXt:
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = create_mednext(
        variant.letter,
        variant.kernel_size,
        in_channels=IN_CHANNELS,
        out_channels=OUT_CHANNELS,
        deep_supervision=True,
        use_checkpoint=None if options.checkpoint else False,
        base_channels=options.base_channels,
    )
    torch.random.set_rng_state(generator_state)
    return network


def _build_one(kind: str, ours: MedNeXt, options: Options, variant: VariantName) -> Contestant:
    if kind in (OURS, "plain"):
        network = copy.deepcopy(ours).to(options.device)
        return Contestant(kind, network, network, get_backend() if kind == OURS else "plain")
    if kind == "monai":
        network = _monai_network(options, variant).to(options.device)
        network.load_state_dict(to_monai(ours.state_dict()))
        return Contestant(kind, network, network, "plain", from_monai)
    network = _original_network(options, variant)
    differences = network.load_state_dict(ours.state_dict(), strict=False)
    if differences.unexpected_keys or any(key.split(".")[-1] != DUMMY for key in differences.missing_keys):
        raise ValueError(f"the network of --upstream {options.upstream} has other parameters: {differences}.")
    network = network.to(options.device)
    return Contestant(kind, network, network, "plain")


def _monai_network(options: Options, variant: VariantName) -> torch.nn.Module:
    """MONAI's ``MedNeXtS``, written out because that takes no number of channels."""
    return MonaiMedNeXt(
        init_filters=options.base_channels,
        in_channels=IN_CHANNELS,
        out_channels=OUT_CHANNELS,
        kernel_size=variant.kernel_size,
        deep_supervision=True,
        use_residual_connection=True,
    )


def _original_network(options: Options, variant: VariantName) -> torch.nn.Module:
    folder = Path(str(options.upstream)).resolve()
    expected = folder.joinpath(*UPSTREAM_MODULE.split(".")).with_suffix(".py")
    if not expected.is_file():
        raise ValueError(f"--upstream must be a checkout of MIC-DKFZ/MedNeXt, but {expected} does not exist.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(UPSTREAM_MODULE)
    except ImportError as error:
        raise ValueError(f"--upstream {folder} cannot be imported: {error}") from error
    return module.create_mednext_v1(
        IN_CHANNELS, OUT_CHANNELS, variant.letter, kernel_size=variant.kernel_size, deep_supervision=True
    )


def make_input(options: Options, shape: Sequence[int]) -> torch.Tensor:
    """Return a random input of these spatial sizes, ``(batch, 1, *shape)``, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(options.batch, IN_CHANNELS, *shape, generator=generator).to(options.device)


def output_gradients(options: Options, size: int) -> list[torch.Tensor]:
    """Return a fixed gradient for each of the five outputs of a training step, in place of a loss; of norm about 1."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(options.batch, OUT_CHANNELS, *[max(size >> level, 1)] * 3) for level in range(5)]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    return [(gradient / gradient.numel() ** 0.5).to(options.device) for gradient in gradients]


def autocast(options: Options) -> AbstractContextManager:
    """Return the context of the run's type: autocast for bf16 and fp16, nothing for float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}[options.dtype]
    return torch.autocast(torch.device(options.device).type, dtype, enabled=dtype is not None)


def train_once(
    contestant: Contestant, x: torch.Tensor, gradients: Sequence[torch.Tensor], context: AbstractContextManager
) -> list[torch.Tensor]:
    """Step forward and, from given gradients of the outputs, backward; the outputs. Gradients stay in the network."""
    contestant.network.zero_grad(set_to_none=True)
    with using_backend(contestant.backend):
        with context:
            outputs = contestant(x)
        torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(gradients, outputs)])
    return [output.detach() for output in outputs]


@dataclass
class Reference:
    """What the plain path computes, without autocast."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]  # empty in evaluation

    def errors(self, contestant: Contestant, outputs: Sequence[torch.Tensor]) -> dict[str, float]:
        """Return the relative errors of a contestant's outputs and, in training, of its gradients."""
        errors = {"output": relative_error(outputs, self.outputs)}
        if self.gradients:
            found = contestant.gradients()
            errors["gradient"] = relative_error([found[name] for name in self.gradients], [*self.gradients.values()])
        return errors


def run_reference(
    options: Options, variant: VariantName, x: torch.Tensor, gradients: Sequence[torch.Tensor] | None = None
) -> Reference:
    """Run the plain path in the type ``options.reference``, without TF32: forward, with ``gradients`` backward too."""
    dtype = getattr(torch, options.reference)
    (plain,) = build(options, variant, ["plain"], training=gradients is not None)
    plain.network.to(dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if gradients is None:
            with torch.no_grad():
                return Reference(list(plain(x.to(dtype))), {})
        off = torch.autocast(x.device.type, enabled=False)
        return Reference(train_once(plain, x.to(dtype), gradients, off), plain.gradients())


def relative_error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference over the largest absolute value of all tensors; NaN if there is one."""
    differences = torch.stack([(a.double() - b.double()).abs().max() for a, b in zip(found, expected)])
    largest = torch.stack([b.double().abs().max() for b in expected]).max()
    return float(differences.max() / largest)
