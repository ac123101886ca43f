"""The command line: ``mednext`` or ``python -m mednext_monai``.

Each command is a function in this module, listed in ``COMMANDS``; python-fire reads its arguments. Functions import
what they need when they are called, so that ``--help`` waits for neither torch nor monai.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .demo.run import run_demo

__all__ = ["COMMANDS", "main"]


def bundle_list() -> None:
    """List the eight bundles and where they are."""
    from . import bundles
    from .bundles.package import has_weights

    for name in bundles.names():
        folder = bundles.path(name)
        print(f"{name}  {'trained' if has_weights(folder) else 'without weights'}  {folder}")


def bundle_copy(name: str, output_dir: str = ".") -> None:
    """
    Copy a bundle to a folder of yours, to be trained there.

    Args:
        name: the bundle, such as mednext_s_k3; `mednext bundle list` shows all.
        output_dir: the folder in which the bundle's folder is made.
    """
    from . import bundles

    print(bundles.copy(name, output_dir))


def bundle_new(variant: str, kernel_size: int, plan: str, output_dir: str) -> None:
    """
    Make a bundle of your own task from a plan.

    The settings of the plan are written into it, so that its commands need no other file; its metadata name your
    channels and classes. It is verified before it appears.

    Args:
        variant: S, B, M or L.
        kernel_size: edge of the depthwise kernels in voxels, 3 or 5.
        plan: the .json file that the command plan wrote.
        output_dir: the bundle's folder, which must not exist or be empty.
    """
    from . import bundles

    folder = bundles.new_bundle(variant, kernel_size, plan, output_dir)
    print(f"{folder}\n\nTo train it:\n  cd {shlex.quote(str(folder))}")
    print("  python -m monai.bundle run training --config_file configs/train.json")
    print("docs/README.md there has the other commands.")


def bundle_build(check: bool = False) -> int:
    """
    Build the bundles from configs/, in a checkout of this package.

    Args:
        check: write nothing, list the files that differ and end with exit status 1 if there are any.
    """
    from . import bundles

    if check:
        differences = bundles.check()
        print("\n".join(differences) or "the bundles are what configs/ makes them")
        return 1 if differences else 0
    changed = bundles.build()
    print("\n".join(f"wrote {file}" for file in changed) or "nothing to do: the bundles are up to date")
    return 0


def bundle_zip(bundle: str, output: str | None = None) -> None:
    """
    Zip a bundle with its weights and the code that it needs.

    Unzipped, it runs where only MONAI is installed.

    Args:
        bundle: a bundle's folder, or the name of one of the eight.
        output: the zip to write; by default <bundle>.zip in the working directory.
    """
    from . import bundles
    from .bundles.package import has_weights

    folder = bundles.path(bundle) if bundle in bundles.names() and not Path(bundle).exists() else Path(bundle)
    target = bundles.zip_bundle(folder, output or f"{folder.resolve().name}.zip")
    print(target)
    if not has_weights(folder):
        print(f"mednext: note: {folder} has no weights yet, and so has the zip", file=sys.stderr)


def convert(source: str, output: str, reverse_axes: bool | None = None, to: str = "native") -> None:
    """
    Convert weights of the authors' code or of MONAI's MedNeXt S.

    The file written is what a bundle has at models/model.pt. Variant and kernel size are read off the tensors.
    Nothing that the source holds is executed.

    Args:
        source: an nnU-Net v1 .model file, or any checkpoint that holds a state dict.
        output: the file to write, such as mednext_b_k5/models/model.pt.
        reverse_axes: reverse the kernels' spatial axes; by default for the authors' weights (z, y, x), no others.
        to: native, or monai for the names of MONAI's own MedNeXt (S only).
    """
    from .weights import convert

    print(convert(source, output, reverse_axes=reverse_axes, to=to))


def upkern(source: str, output: str, kernel_size: int = 5) -> None:
    """
    Write the weights that start a network of another kernel size.

    They are those of a trained network with its kernels interpolated. For training this is not needed: the option
    --upkern_checkpoint of a bundle does it.

    Args:
        source: the trained checkpoint, of any kernel size.
        output: the file to write, such as mednext_s_k5/models/model.pt.
        kernel_size: edge of the new kernels in voxels, odd.
    """
    from .networks import MedNeXt
    from .weights import describe, read_state_dict, write_state_dict
    from .weights import upkern as initialise

    if Path(output).exists() and Path(output).samefile(source):
        raise ValueError(f"output must be another file than the source, got {output} for both.")
    trained = read_state_dict(source)
    description = describe(trained)
    kernels = {"encoder_kernel_size": kernel_size, "decoder_kernel_size": kernel_size}
    network = MedNeXt(**{**description.network_arguments(), **kernels})
    report = initialise(trained, network)
    write_state_dict(network.state_dict(), output)
    print(f"read {source}: {description}\n{report}\nwrote {output}: {describe(network.state_dict())}")


def plan(
    dataset_dir: str,
    output: str,
    patch_size: int | None = None,
    batch_size: int = 2,
    groups: str | None = None,
    splits: str | None = None,
    gpu_memory: float | None = None,
    processes: int | None = None,
) -> None:
    """
    Check a data set and plan its training.

    Writes settings that every bundle takes, --config_file "['configs/train.json','task.json']", and a page to look at.

    Args:
        dataset_dir: the folder with dataset.json, in Decathlon, nnU-Net v1 raw or nnU-Net v2 raw layout.
        output: the .json file to write; the page lies beside it as .html.
        patch_size: edge of the patches in voxels, a multiple of 16; by default 128, less where all volumes are smaller.
        batch_size: patches a step.
        groups: a CSV file of case id and patient id, so that no patient is on both sides of a fold.
        splits: your own folds, a JSON file in nnU-Net's format; by default splits_final.json of the data set, or the
            original's five.
        gpu_memory: memory of the graphics card in GiB; by default that of the card at hand.
        processes: processes that read; by default one per core.
    """
    from .planning import plan, text_report

    print(text_report(plan(dataset_dir, output, patch_size, batch_size, groups, splits, gpu_memory, processes)))
    print(f"\nwrote {output} and, to look at, {Path(output).with_suffix('.html')}\n\nTo make a bundle of it:")
    print(f"  mednext bundle new --variant S --kernel_size 3 --plan {shlex.quote(output)} --output_dir my_bundle")


# A dictionary is a group of commands. The first line of a function's docstring is what `mednext --help` says about it.
COMMANDS: dict[str, Any] = {
    "demo": run_demo,
    "plan": plan,
    "bundle": {
        "list": bundle_list,
        "copy": bundle_copy,
        "new": bundle_new,
        "build": bundle_build,
        "zip": bundle_zip,
    },
    "convert": convert,
    "upkern": upkern,
}

HELP = {"--help", "-h"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 for what went wrong, 2 for a command that is not understood."""
    os.environ["PAGER"] = "cat"  # fire would open the help in a pager
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"mednext: warning: {message}", file=sys.stderr)
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of a pipe has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"mednext: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mednext: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] == "--version":
        print(f"mednext {__version__}")
        return 0
    command: Any = COMMANDS
    path = ["mednext"]
    while isinstance(command, dict):
        if not arguments or arguments[0] in HELP:
            print(_overview(command, path))
            return 0
        if arguments[0] not in command:
            return _misused(path, f"there is no command {arguments[0]!r}; the commands are {', '.join(command)}.")
        path.append(arguments.pop(0))
        command = command[path[-1]]
    if HELP & set(arguments):
        print(_help(command, path))
        return 0
    return _call(command, arguments, path)


def _misused(path: list[str], message: str) -> int:
    print(f"mednext: error: {message}\nSee {' '.join(path)} --help.", file=sys.stderr)
    return 2


def _call(function: Callable[..., Any], arguments: list[str], path: list[str]) -> int:
    """
    Have fire bind the arguments, and call the function only when none is left over.

    Fire itself calls first and complains about the rest afterwards: with a misspelt option, after the training.
    """
    import fire

    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            bound = fire.Fire(_deferred(function), command=arguments, name=" ".join(path), serialize=lambda _: None)
    except fire.core.FireExit as stop:
        if stop.code != 0:
            return _misused(path, stop.trace.elements[-1].ErrorAsStr())
        print(shown.getvalue())  # what fire does by itself, such as `-- --trace`
        return 0
    result = bound._function(*bound._args, **bound._kwargs)
    return result if isinstance(result, int) else 0


class _Bound:
    """A function with its arguments; without public members, which fire would let the command line reach."""

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs


def _deferred(function: Callable[..., Any]) -> Callable[..., _Bound]:
    """Return a function of the same signature that only notes its arguments, which fire parses by their annotations."""
    from fire.decorators import SetParseFn

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> _Bound:
        return _Bound(function, args, kwargs)

    for name, parameter in inspect.signature(function).parameters.items():
        kind = str(parameter.annotation).split(" | ")[0]
        bind = SetParseFn(functools.partial(PARSERS[kind], name), name)(bind)
    return bind


def _parse_bool(name: str, text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(f"--{name} must be true or false, got {text!r}.")
    return values[text.lower()]


def _parse_number(kind: type, name: str, text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{name} must be a {'whole ' if kind is int else ''}number, got {text!r}.") from None


# By annotation. Left to itself, fire makes a number of a path such as 2024 and a string of `false`.
PARSERS: dict[str, Callable[[str, str], Any]] = {
    "str": lambda name, text: text,
    "bool": _parse_bool,
    "int": functools.partial(_parse_number, int),
    "float": functools.partial(_parse_number, float),
}


def _overview(group: dict[str, Any], path: list[str]) -> str:
    """Return the help of a group of commands."""
    commands = _flat(group)
    width = max(map(len, commands)) + 2
    lines = [f"usage: {' '.join(path)} COMMAND [ARGUMENTS]", ""]
    if path == ["mednext"]:
        lines += [f"MedNeXt for MONAI, version {__version__}.", ""]
    lines += ["commands:", *(f"  {name:{width}}{_first_line(function)}" for name, function in commands.items()), ""]
    lines += [f"`{' '.join(path)} COMMAND --help` says more about a command."]
    return "\n".join(lines + (["`mednext --version` prints the version."] if path == ["mednext"] else []))


def _flat(group: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    commands = {}
    for name, item in group.items():
        nested = _flat(item) if isinstance(item, dict) else {"": item}
        commands.update({f"{name} {rest}".strip(): function for rest, function in nested.items()})
    return commands


def _first_line(function: Callable[..., Any]) -> str:
    return inspect.getdoc(function).splitlines()[0].rstrip(".")


def _help(function: Callable[..., Any], path: list[str]) -> str:
    """Return fire's help for a command."""
    from fire import helptext
    from fire.trace import FireTrace

    trace = FireTrace(function, name=path[0])
    for name in path[1:]:
        trace.AddAccessedProperty(function, name, [name], None, None)
    text = helptext.HelpText(function, trace=trace)
    return re.sub(r"Type: (?:Optional\[)?'(\w+)(?: \| None)?'\]?", r"Type: \1", text)
