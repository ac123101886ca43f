"""``mednext preprocess``, ``train``, ``evaluate`` and ``predict``: a bundle's workflows with checked options.

``cross_validation`` runs the first two for several folds.

Each is equal to a ``python -m monai.bundle run`` command, which it prints and starts as a process of its own. What is
typed is checked here, before MONAI is imported; the run checks it again, with everything else that its config contains.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ERROR_FILE, TRACEBACK
from ..files import read_json
from ..options import literal, paths
from .library import names, path
from .task_bundle import refuse_code

__all__ = [
    "ENVIRONMENT",
    "WORKFLOWS",
    "Misuse",
    "Workflow",
    "bundle_command",
    "environment",
    "help_text",
    "run_command",
    "run_workflow",
]

# On Linux, keep freed memory in the process, since returning it to the system after every operation doubles the
# run time. Let idle threads give up their core, those of GNU's OpenMP, which torch uses, after some microseconds.
# Sleeping between two operations costs a third of the speed. Spinning for milliseconds, the default, makes two runs
# side by side take 50 times as long, since the idle threads of each keep those of the other from working.
# The configs are the bundle's own, about which MONAI need not warn.
ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore:parsing config_file",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",  # counts more than the policy
}
WIDTH = 110  # columns of a help text
FIXED = {"bundle_root", "variant", "kernel_size"}  # those of the bundle
OF_MONAI = {
    "tracking": 'mlflow, or a file of MONAI\'s settings: record the run (pip install "mednext-monai[tracking]")'
}


class Misuse(ValueError):
    """What was typed is not a command: an unknown option, or an argument that is missing."""


class Workflow(NamedTuple):
    """A workflow of the bundles as a command."""

    summary: str
    description: str
    run_id: str
    configs: tuple[str, ...]  # in the bundle's configs/
    sources: tuple[str, ...]  # in configs/, which describe its options
    arguments: tuple[tuple[str, str], ...] = ()  # positional: name, and the option that it sets
    multi_gpu: str = ""  # overlay for several processes
    own: tuple[tuple[str, str], ...] = ()  # options that are not in the configs, and what they do
    hidden: tuple[str, ...] = ()  # options of the configs that the command sets itself
    options: tuple[str, ...] = ()  # those that concern it, if not all of the sources
    needed_without_bundle: str = ""  # an option, with which any of the bundles serves
    takes_name: bool = False  # a bundle of the package serves by its name, since nothing is written to it


WORKFLOWS = {
    "preprocess": Workflow(
        "Preprocess a whole data set before its training, on one or several computers",
        "Checks, preprocesses and stores all cases, whatever fold they are in, in cache/ of the bundle or in "
        "--cache_dir. A training with the same plan and folder finds them and begins at once. Stored cases are "
        "skipped, so that the same command completes a run that was interrupted. Ends with exit status 1 and the list "
        "of the cases that are invalid; the others are stored. With --part 0 --parts 4, ..., --part 3 --parts 4, four "
        "computers that share a file system do a quarter each.",
        "preprocessing",
        ("train", "preprocess"),
        ("preprocess", "common", "train"),
        options=(
            *("dataset_dir", "cache_dir", "part", "parts", "processes", "in_channels", "out_channels"),
            *("spatial_dims", "slice_axis", "spacing", "orientation", "normalization", "intensity"),
            *("ignore_label", "progress_bar"),
        ),
        needed_without_bundle="cache_dir",
    ),
    "train": Workflow(
        "Train a bundle",
        "Checks all files of the data set, preprocesses the cases of the fold, trains, and validates. Writes "
        "models/model_best.pt, models/last.pt and, after the last epoch, models/model.pt in the bundle.",
        "training",
        ("train",),
        ("common", "train"),
        multi_gpu="multi_gpu_train",
    ),
    "evaluate": Workflow(
        "Evaluate a trained bundle on the validation cases of its fold",
        "Computes Dice, surface Dice, HD95 and volumes of each case and class on the original grid of the case. Writes "
        "the tables of `mednext evaluate-folder` to eval/ in the bundle. With --part 0 --parts 4, ..., --part 3 "
        "--parts 4, four runs do a quarter of the cases each, and the last one writes the tables.",
        "evaluating",
        ("train", "evaluate"),
        ("common", "train", "evaluate"),
        multi_gpu="multi_gpu_train",
    ),
    "predict": Workflow(
        "Segment images with a trained bundle",
        "Writes one .nii.gz per case, on the grid of the image, or a picture for a PNG or TIFF. A case that fails does "
        "not stop the others: all such "
        "cases are listed at the end, with exit status 1. Cases that are finished, from the same images with the same "
        "weights and settings, are skipped, so that the same command completes a run that was interrupted. With "
        "--gpus 2, two processes share the cases; with --part 0 --parts 4, ..., --part 3 --parts 4, four computers do.",
        "inferring",
        ("inference",),
        ("common", "inference"),
        arguments=(("INPUT", "input"), ("OUTPUT", "output_dir")),
        multi_gpu="multi_gpu_inference",
        takes_name=True,
    ),
    "cross-validate": Workflow(
        "Train all folds of a bundle, evaluate them together and find the post-processing",
        "Trains the folds that have no model.pt, continuing those that were interrupted, and evaluates each one on its "
        "validation cases. Then collects the segmentations of all cases in eval/cross_validation/predictions, writes "
        "their tables, decides as `mednext find-postprocessing` where only the largest component is kept "
        "(postprocessing.json), and applies it (postprocessed/). If a fold fails, the same command continues there.",
        "evaluating",
        ("train", "evaluate"),
        ("common", "train", "evaluate"),
        multi_gpu="multi_gpu_train",
        own=(
            ("folds", "the folds, such as 0 1 2; by default all of the data set"),
            ("collect_only", "train and evaluate nothing, only collect what the folds have written"),
        ),
        hidden=("fold", "resume", "overwrite", "checkpoint", "save_predictions", "part", "parts"),
    ),
}


def run_workflow(name: str, arguments: Sequence[str]) -> int:
    """
    Run a workflow as typed after ``mednext <name>``, and return its exit status.

    Raises:
        Misuse: if an argument is missing or an option does not exist.
        ValueError: if the value of an option is not allowed, or the bundle is not one.
        FileNotFoundError: if a config file does not exist.
    """
    if name == "cross-validate":
        from .cross_validation import cross_validate

        return cross_validate(arguments)
    typed = _parse(WORKFLOWS[name], arguments)
    command = _command(WORKFLOWS[name], typed)
    shown = ["python", *command[1:]] if typed.gpus is None else ["torchrun", *command[3:]]
    print(f"$ {shlex.join(shown)}", flush=True)
    return run_command(command, name)


def bundle_command(
    bundle: Path, configs: Sequence[str] = ("train",), run_id: str = "training", **overrides: object
) -> list[str]:
    """
    Return the ``python -m monai.bundle`` command that runs a bundle.

    Args:
        bundle: the bundle's folder.
        configs: names of files in its ``configs/`` without ``.json``, or paths of other config files; later files
            override earlier ones.
        run_id: key of the config to run.
        overrides: values by the key of the config that they override.
    """
    files = [str(bundle / "configs" / f"{file}.json") if "." not in file else file for file in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id]
    command += [
        "--config_file",
        _quoted(files[0]) if len(files) == 1 else json.dumps(files),
        "--bundle_root",
        _written(str(bundle)),
    ]
    for key, value in overrides.items():
        command += [f"--{key}", _written(value)]
    return command


def _written(value: object) -> str:
    """Write a value so that fire and MONAI read it as what it is."""
    if isinstance(value, list):
        return f"[{','.join(repr(literal(item)) for item in value)}]"
    return _quoted(literal(str(value))) if isinstance(value, (str, Path)) else repr(value)


def _quoted(text: str) -> str:
    """Return a text in quotes if fire would take it for something else: a number, a comment, an option, ..."""
    from fire.parser import DefaultParseValue

    return text if DefaultParseValue(text) == text and not text.startswith("-") else repr(text)


class _Typed(NamedTuple):
    bundle: Path
    overlays: list[str]
    gpus: int | None
    options: dict[str, Any]


def _parse(workflow: Workflow, arguments: Sequence[str]) -> _Typed:
    from .options import OPTIONS, check_option

    positional, given = _split(arguments)
    if not positional and workflow.needed_without_bundle in dict(given):
        positional = [str(path(names()[0]))]
    bundle = _bundle(positional, workflow)
    wanted = [name for name, _ in workflow.arguments]
    if len(positional) != len(wanted) + 1:
        missing = ", ".join(wanted[max(len(positional) - 1, 0) :]) or "no other argument"
        raise Misuse(f"expected BUNDLE{''.join(f' {name}' for name in wanted)}, got {len(positional)}: {missing}.")
    known = _keys(bundle, workflow)
    options: dict[str, Any] = dict(zip((option for _, option in workflow.arguments), positional[1:]))
    overlays: list[str] = []
    gpus = None
    for name, values in given:
        if name in ("plan", "config"):
            overlays += [_overlay(name, value) for value in values or [""]]
        elif name == "traceback" and not values:
            os.environ[TRACEBACK] = "1"
        elif name == "gpus" and workflow.multi_gpu:
            gpus = _count(values)
        elif re.split("::|#", name)[0] not in {*known, *OF_MONAI} or name in FIXED:
            raise Misuse(_unknown(name, known, workflow))
        else:
            options[name] = _value(name, values)
            if name in OPTIONS:
                check_option(name, options[name])
    return _Typed(bundle, overlays, gpus, options)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the positional arguments, and each option with the values that follow it."""
    positional: list[str] = []
    options: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            options.append((name.replace("-", "_"), [value] if equals else []))
        elif options:
            options[-1][1].append(argument)
        else:
            positional.append(argument)
    return positional, options


def _bundle(positional: Sequence[str], workflow: Workflow) -> Path:
    arguments = "".join(f" {name}" for name, _ in workflow.arguments)
    if not positional:
        other = workflow.needed_without_bundle and f" Without one, --{workflow.needed_without_bundle} is needed."
        raise Misuse(f"expected BUNDLE{arguments} before the options: the folder of a bundle.{other}")
    bundle = Path(positional[0])
    if workflow.takes_name and not bundle.exists() and positional[0] in names():
        bundle = path(positional[0])
    if not (bundle / "configs" / f"{workflow.configs[0]}.json").is_file():
        hint = f"; copy it first: mednext bundle copy {bundle}" if str(bundle) in names() else ""
        raise ValueError(f"BUNDLE: {bundle} is not a bundle, it has no configs/{workflow.configs[0]}.json{hint}.")
    return bundle


def _keys(bundle: Path, workflow: Workflow) -> dict[str, Any]:
    """Return the top level of the configs of a workflow."""
    merged: dict[str, Any] = {}
    for config in workflow.configs:
        file = bundle / "configs" / f"{config}.json"
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}.")
        merged.update(content)
    return merged


def _unknown(name: str, known: dict[str, Any], workflow: Workflow) -> str:
    from .options import OPTIONS
    from .run_checks import nearest

    if name in FIXED:
        return f"--{name} is the bundle's own and cannot be changed here."
    options = [key for key in known if key in OPTIONS and key not in FIXED]
    own = ["plan", "config", "traceback", *OF_MONAI, *(["gpus"] if workflow.multi_gpu else []), *dict(workflow.own)]
    return f"there is no option --{name}.{nearest(name, [*options, *own])}"


def _overlay(name: str, value: str) -> str:
    """Return the path of an overlay, which must exist; a plan must be data only."""
    file = Path(value)
    if not file.is_file():
        raise FileNotFoundError(f"--{name}: there is no file {value!r}.")
    if name == "plan":
        refuse_code(read_json(file), file)
    return value


def _count(values: Sequence[str]) -> int:
    if len(values) != 1 or not values[0].isdigit() or int(values[0]) < 1:
        raise ValueError(f"--gpus must be an integer of at least 1, got {' '.join(values) or 'nothing'}.")
    import torch

    available = torch.cuda.device_count()
    if torch.cuda.is_available() and int(values[0]) > available:
        raise ValueError(f"--gpus must be at most {available}, the number of GPUs of this computer, got {values[0]}.")
    return int(values[0])


def _value(name: str, values: Sequence[str]) -> Any:
    """Return what was typed for an option: `--resume`, `--fold 1`, `--patch_size 64 64 48`, `--spacing 1,1,3`."""
    from .options import OPTIONS, SWITCH

    option = OPTIONS.get(name)
    if not values:
        if option is not None and option.accepts is SWITCH.accepts:
            return True
        raise Misuse(f"--{name} needs a value.")
    if option is not None and option.is_path and option.is_list:
        return None if values in (["null"], ["None"]) else paths(**{name: values if len(values) > 1 else values[0]})
    if option is not None and option.is_path:
        if len(values) != 1:
            raise Misuse(f"--{name} takes one value, got {' '.join(values)}; quote a path that contains spaces.")
        return None if values[0] in ("null", "None") else values[0]
    if option is not None and option.is_list and not values[0].startswith("["):
        parts = [part for value in values for part in value.split(",") if part]
        read = [_read(part) for part in parts]
        return read[0] if len(read) == 1 and not isinstance(read[0], str) else read
    return _read(" ".join(values))


def _read(text: str) -> Any:
    """Return a number, list, dictionary, true, false or null as a Python value, and any other text as it is."""
    import yaml

    with_exponent = re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text)  # a text in YAML
    try:
        value = float(text) if with_exponent else yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return None if text == "None" else value if isinstance(value, (bool, int, float, list, dict, type(None))) else text


def _command(workflow: Workflow, typed: _Typed) -> list[str]:
    configs = [*workflow.configs[:1], *([workflow.multi_gpu] if typed.gpus else []), *workflow.configs[1:]]
    command = bundle_command(typed.bundle, [*configs, *typed.overlays], workflow.run_id, **typed.options)
    if typed.gpus is not None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(typed.gpus)]
        command = [command[0], *launcher, *command[1:]]
    return command


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with more variables, and with ``ENVIRONMENT`` where it says nothing else."""
    own = dict(ENVIRONMENT)
    if "OMP_WAIT_POLICY" in os.environ:
        del own["GOMP_SPINCOUNT"]  # it would overrule that
    return {**own, **os.environ, **more}


def run_command(command: list[str], name: str) -> int:
    """Run the command; when it has failed, print the diagnosis that it left as the last line."""
    with tempfile.TemporaryDirectory(prefix="mednext.") as folder:
        file = Path(folder, "error")
        file.touch()
        with subprocess.Popen(command, env=environment({ERROR_FILE: str(file)})) as process, _terminating(process):
            status = process.wait()
        if status == 0:
            return 0
        sentence = file.read_text(encoding="utf-8")
    if -status in (signal.SIGINT, signal.SIGTERM) or status == 130:
        print("mednext: interrupted", file=sys.stderr)
        return 130
    if not sentence:
        ended = f"was killed by signal {-status}" if status < 0 else f"failed with exit status {status}"
        advice = "often for lack of memory" if status == -signal.SIGKILL else "the messages above say why"
        sentence = f"{name} {ended}; {advice}."
    print(f"\nmednext: error: {sentence}", file=sys.stderr)
    return 1


@contextmanager
def _terminating(process: subprocess.Popen) -> Iterator[None]:
    """Pass SIGTERM on to a process, and wait for it when the keyboard interrupts both."""
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def help_text(name: str, arguments: Sequence[str] = ()) -> str:
    """
    Return the help of a command, with the defaults of the bundle that the arguments name, else of the generic ones.

    Args:
        name: a key of ``WORKFLOWS``.
        arguments: what was typed beside ``--help``.
    """
    from .options import describe_options

    workflow = WORKFLOWS[name]
    positional, _ = _split([argument for argument in arguments if argument not in ("--help", "-h")])
    is_bundle = bool(positional) and Path(positional[0], "configs", f"{workflow.configs[0]}.json").is_file()
    defaults = _keys(Path(positional[0]) if is_bundle else path(names()[0]), workflow)
    described = {
        item.name: item
        for item in describe_options(*workflow.sources)
        if item.name in defaults and (not workflow.options or item.name in workflow.options)
    }
    positionals = "".join(f" {argument}" for argument, _ in workflow.arguments)
    bundle = f"[BUNDLE | --{workflow.needed_without_bundle} FOLDER]" if workflow.needed_without_bundle else "BUNDLE"
    lines = [f"usage: mednext {name} {bundle}{positionals} [--OPTION VALUE ...]", ""]
    lines += textwrap.wrap(f"{workflow.summary}. {workflow.description}", WIDTH)
    of_package = "; or the name of one with weights, such as mednext_s_k3" if workflow.takes_name else ""
    origin = f"folder of a bundle, made by `mednext bundle copy` or `mednext bundle new`{of_package}"
    lines += ["", "  BUNDLE", *textwrap.wrap(origin, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    for argument, option in workflow.arguments:
        lines += [f"  {argument}", f"      {described.pop(option).comment}"]
    sections: dict[str, list[str]] = {}
    for item in described.values():
        if item.name not in (*FIXED, *workflow.hidden):
            option_lines = _option_lines(item.name, _shown(defaults[item.name]), item.comment)
            sections.setdefault(item.section, []).extend(option_lines)
    sections["how to run"] = [
        *(line for option, comment in workflow.own for line in _option_lines(option, "", comment)),
        *_option_lines("plan", "", "a plan of `mednext plan`, whose settings replace those of the bundle"),
        *_option_lines("config", "", "another overlay: a MONAI config, whose expressions are executed"),
        *(_option_lines("gpus", "", "number of processes, one per GPU, by torchrun") if workflow.multi_gpu else ()),
        *(line for option, comment in OF_MONAI.items() for line in _option_lines(option, "", comment)),
        *_option_lines("traceback", "", "if the run fails, print where, not only why"),
    ]
    for section, section_lines in sections.items():
        lines += ["", f"{section}:", *section_lines]
    lines += [
        "",
        "A list is typed as --patch_size 64 64 48 or --patch_size 64,64,48. Every other key of the configs is",
    ]
    lines += ["an option, too: --train::trainer::amp false. The command that MONAI runs is printed first."]
    return "\n".join(lines)


def _option_lines(name: str, default: str, comment: str) -> list[str]:
    head = f"  --{name}" + (f" (default: {default})" if default else "")
    return [head, *textwrap.wrap(comment, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _shown(default: Any) -> str:
    """Write a default of a config as a user would type it; of an expression only what is a path in the bundle."""
    if isinstance(default, str) and default.startswith("$"):
        found = re.match(r"\$@bundle_root \+ '(/\w+)'", default)
        return f"BUNDLE{found[1]}" if found else ""
    if isinstance(default, (bool, type(None))):
        return {True: "true", False: "false", None: "null"}[default]
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)
