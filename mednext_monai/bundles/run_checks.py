"""What is checked when a run of a bundle begins, however it was started, before anything else.

MONAI accepts any key as an option, whether something uses it or not; it evaluates an item of any name as a run; and the
order in which configs are named decides silently. It offers no place to look at what it merged: an item of a config
sees the items to which it refers, not the config. ``check_run`` is such an item, the first of ``initialize``, and finds
the workflow that evaluates it on the call stack. That is the least bad of the ways that reach the command line,
overlays and Python alike: replacing MONAI's functions would affect other bundles, and a workflow class of our own would
have to be named in each command.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import print_diagnosis_last
from ..options import literal, path
from .options import OPTIONS, check_option
from .task_bundle import PLAN_KEYS

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

__all__ = ["check_run", "nearest"]

logger = logging.getLogger(__name__)

# Arguments of MONAI's `run`, which are no keys of a config.
ARGUMENTS = ("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file")
EXPRESSION = re.compile(r"\$(?!import |from )")
REFERENCE = re.compile(r"@(\w+)")


def check_run() -> None:
    """
    Check the config of the workflow that evaluates this call; without one, as in ``monai.bundle.load``, do nothing.

    From then on, an error that ends the process prints its diagnosis as the last thing on the screen.

    An option that only another workflow of the bundle has, such as the epochs of a training, is a warning: one list of
    options may serve several commands.

    Raises:
        ValueError: if the configs are named in an order that loses settings; if a top-level key is neither one of the
            bundle's nor used by anything, with the nearest key; if the run id is no run, with those there are; or if
            the value of an option is not allowed.
    """
    found = _running_workflow()
    if found is None:
        return
    workflow, overrides = found
    print_diagnosis_last()
    config = workflow.parser.config
    own = _own_keys(workflow)
    _check_keys(config, own, {workflow.init_id, workflow.final_id})
    _check_run_id(config, workflow.run_id, {workflow.init_id, workflow.final_id})
    _take_as_typed(workflow, overrides)
    for name in OPTIONS:
        if name in config:
            check_option(name, workflow.parser.get_parsed_content(name))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what ``name`` may have been meant to be, or an empty text."""
    names = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {names[0]}?" if names else ""


def _running_workflow() -> tuple[ConfigWorkflow, Mapping[str, Any]] | None:
    """Return the workflow on the call stack and the options as they were passed to it."""
    from monai.bundle import ConfigWorkflow

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if frame.f_code.co_name == "initialize" and isinstance(workflow, ConfigWorkflow):
            caller = frame.f_back
            passed = caller.f_locals.get("_args") if caller and caller.f_code.co_name == "create_workflow" else None
            return workflow, passed if isinstance(passed, Mapping) else {}
        frame = frame.f_back
    return None


def _own_keys(workflow: ConfigWorkflow) -> list[str]:
    """
    Return the keys of the config file that came first.

    Merging keeps the order of the keys, and a file that can stand first describes a network and a run.
    """
    import yaml
    from monai.bundle import ConfigParser

    order = [key for key in workflow.parser.config if key != workflow.parser.meta_key]
    matching = []
    for file in (file for ending in ("json", "yaml", "yml") for file in workflow.config_root_path.glob(f"*.{ending}")):
        with contextlib.suppress(
            ValueError, TypeError, OSError, yaml.YAMLError
        ):  # another file, such as a list of folds
            keys = list(ConfigParser.load_config_file(file))
            if {"network_def", "run"} <= set(keys) and order[: len(keys)] == keys:
                matching.append(keys)
    if not matching:
        raise ValueError(
            "config_file must name the bundle's train.json or inference.json first, then overlays and plans, because "
            f"later files take precedence; the first file has the key {order[0]!r}, which these do not begin with."
        )
    return max(matching, key=len)


def _check_keys(config: Mapping[str, Any], own: list[str], steps: set[str]) -> None:
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    tracking = set(DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"])
    known = {*own, *steps, *tracking, "_meta_", *(PLAN_KEYS if "_plan_" in config else ())}
    used = {name for text in _texts(config) for name in REFERENCE.findall(text)}
    for key in config:
        if key in known | used or key.startswith("_") or _is_run(config[key]):
            continue
        if key not in OPTIONS:
            raise ValueError(_unknown(key, own))
        logger.warning(f"{key} is an option of another workflow of the bundle and has no effect on this one.")


def _unknown(key: str, own: list[str]) -> str:
    options = [name for name in own if name in OPTIONS]
    hint = nearest(key, [*options, *ARGUMENTS]) or nearest(key, own)
    return f"there is no option {key}, and nothing in the config uses it.{hint} The options are {', '.join(options)}."


def _check_run_id(config: Mapping[str, Any], run_id: str, steps: set[str]) -> None:
    runs = [key for key, value in config.items() if _is_run(value) and key not in steps]
    if run_id not in runs:
        what = "is not a run" if run_id in config else "is not in the config"
        raise ValueError(f"run_id {run_id!r} {what}.{nearest(run_id, runs)} The runs are {', '.join(runs)}.")


def _is_run(value: Any) -> bool:
    """Return whether an item is a run: a list of expressions."""
    return isinstance(value, list) and bool(value) and all(isinstance(i, str) and EXPRESSION.match(i) for i in value)


def _texts(item: Any) -> Iterator[str]:
    """Yield the texts in which MONAI finds references: expressions, and those that are one reference."""
    if isinstance(item, Mapping):
        for value in item.values():
            yield from _texts(value)
    elif isinstance(item, list):
        for value in item:
            yield from _texts(value)
    elif isinstance(item, str) and item.startswith(("$", "@")):
        yield item


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _take_as_typed(workflow: ConfigWorkflow, overrides: Mapping[str, Any]) -> None:
    """
    Give the options of the command line the meaning that they had there.

    MONAI has replaced each ``#`` in a path by ``::``; fire leaves ``false`` as text, which counts as true where a path
    such as ``train::trainer::amp`` hands it to a component of MONAI, and reads a folder named 2024 as a number.
    """
    changed: dict[str, Any] = {}
    for name in (name for name, option in OPTIONS.items() if option.is_path):
        value = workflow.parser.config.get(name)  # also from an overlay
        if value is not None and not isinstance(value, (str, list, dict)):
            changed[name] = literal(path(**{name: value}))
    for name, value in overrides.items():
        if isinstance(value, list) and name in OPTIONS and OPTIONS[name].is_path and OPTIONS[name].is_list:
            changed[name] = [item if _is_code(item) else literal(item) for item in value]
        if not isinstance(value, str) or _is_code(value):
            continue
        if name in OPTIONS and OPTIONS[name].is_path:
            changed[name] = literal(value)
        elif ("::" in name or "#" in name) and value.lower() in ("true", "false"):
            changed[name] = value.lower() == "true"
    if changed:
        workflow.parser.update(changed)
        workflow.parser.parse(reset=True)
