"""The option ``compile`` of the bundles: ``torch.compile`` of a network that stays the same object.

``SupervisedTrainer`` and ``SupervisedEvaluator`` of MONAI have an argument ``compile``, which does not do here (1.6.1).
They replace the network by another object, whose state dict has the prefix ``_orig_mod.`` that a federated client would
send; the trainer makes one ``MetaTensor`` of the five outputs of deep supervision, which is an error; the evaluator
takes away the metadata before the inferer, which restores the grid of the image with them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import torch
import torch.nn as nn
from monai.data.meta_tensor import MetaTensor

from ..options import parse_switch
from .ensemble import Ensemble

__all__ = ["Compiler"]

logger = logging.getLogger(__name__)


class Compiler:
    """
    Compile networks with ``torch.compile``, or leave them as they are.

    A network is compiled in place, as by ``torch.nn.Module.compile``: names of parameters, checkpoints and copies are
    those of the network, copies are not compiled. A ``MetaTensor`` passes through it as a plain tensor, since each of
    its operations would be a graph of its own, and gives ``MetaTensor``.

    Compiled are the plain modules, which on a CPU are slower than the optimized implementation that they replace.

    Args:
        compile: whether to compile, in one of the spellings of :py:func:`mednext_monai.options.switch`. Defaults to
            ``False``.
        device: the device of the networks, for :py:meth:`check`. Defaults to ``"cpu"``.
        backend: of ``torch.compile``. Defaults to ``"inductor"``.
        kwargs: further arguments of ``torch.compile``. By default, every size of the input is compiled for itself
            (``dynamic=False``): patches and windows have one.

    Raises:
        ValueError: if ``compile`` is not a switch.
    """

    def __init__(
        self,
        compile: bool | int | str = False,
        device: str | torch.device = "cpu",
        backend: str | Callable = "inductor",
        **kwargs: Any,
    ) -> None:
        self.is_enabled = parse_switch("compile", compile)
        self.device = torch.device(device)
        self.arguments = {"backend": backend, "dynamic": False, **kwargs}

    def __call__(self, network: nn.Module) -> nn.Module:
        """
        Return ``network``, whose calls are compiled from now on; for an ensemble, those of its members.

        Args:
            network: a network that takes a tensor and returns a tensor or a tuple of tensors.
        """
        for member in network.members if isinstance(network, Ensemble) else [network]:
            if self.is_enabled and member._compiled_call_impl is None:
                member.compile(**self.arguments)
                member._compiled_call_impl = _without_metadata(member._compiled_call_impl)
        return network

    def check(self) -> None:
        """
        Compile a function of one line, so that a missing compiler is an error before anything else is computed.

        Raises:
            ValueError: if that fails, with the reason.
        """
        if not self.is_enabled:
            return
        arguments = dict(self.arguments)
        if arguments["backend"] == "inductor":  # what an earlier run compiled says nothing about the compiler
            arguments["options"] = {"fx_graph_cache": False}
        try:
            torch.compile(_one_line, **arguments)(torch.ones(64, device=self.device))
        except Exception as error:  # of dynamo, the backend, its compilers and their processes
            raise ValueError(
                f"compile: torch.compile does not work on this computer, {_reason(error)}. It needs a C++ compiler "
                "such as g++, and on a GPU Triton; --compile false runs without it."
            ) from error
        if self.device.type == "cpu":
            logger.warning("compile: on a CPU, the optimized implementation that runs without this option is faster.")


def _one_line(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x) + 1


def _reason(error: BaseException) -> str:
    """Return type and first line of the error that others have wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    inner = getattr(error, "inner_exception", error)
    line = next((line.strip() for line in str(inner).splitlines() if line.strip()), "")
    return f"{type(inner).__name__}: {shorten(line, 200)}".rstrip(": .")


def _without_metadata(call: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return ``call`` for a plain tensor; of a ``MetaTensor`` it sees only the values, and the results get the rest."""
    assert call is not None

    @functools.wraps(call)
    def call_with_values(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, MetaTensor):
            return call(x, *args, **kwargs)
        out = call(x.as_tensor(), *args, **kwargs)
        tensors = [MetaTensor(tensor).copy_meta_from(x) for tensor in (out if isinstance(out, tuple) else (out,))]
        return tuple(tensors) if isinstance(out, tuple) else tensors[0]

    return call_with_values
