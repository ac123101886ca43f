"""What each option of the bundles may be, and what ``configs/`` says about it.

An option is a key at the top of a config that a user may set. Its comment in ``configs/`` is its help text; what it may
be is in ``OPTIONS``, which the commands of ``mednext`` and every run of a bundle check before anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import options
from ..preprocessing.normalization import SCHEMES
from .library import config_sources

__all__ = ["OPTIONS", "Description", "Option", "check_option", "describe_options"]


class Option(NamedTuple):
    """What an option may be: in words, and a function that tells or raises a ``ValueError``."""

    allowed: str
    accepts: Callable[[Any], Any]
    is_path: bool = False  # a text that is never converted to anything else
    is_list: bool = False  # several values may be typed one after another


class Description(NamedTuple):
    """An option as ``configs/`` describes it."""

    name: str
    section: str  # heading in the file
    comment: str


def check_option(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: if the option ``name`` cannot be ``value``, with what it may be.
    """
    option = OPTIONS[name]
    try:
        accepted = option.accepts(value)
    except (TypeError, ValueError, RuntimeError):
        accepted = False
    if accepted is False:
        raise ValueError(f"{name} must be {option.allowed}, got {value!r}.")


def _is_integer(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _integer(minimum: int) -> Option:
    return Option(f"an integer of at least {minimum}", lambda value: _is_integer(value, minimum))


def _number(allowed: str, accepts: Callable[[float], bool]) -> Option:
    return Option(f"a number {allowed}", lambda value: _is_number(value) and accepts(value))


def _one_of(*values: Any) -> Option:
    named = [repr(value) for value in values]
    allowed = f"{', '.join(named[:-1])} or {named[-1]}"
    return Option(allowed, lambda value: not isinstance(value, bool) and value in values)


def _or_null(option: Option) -> Option:
    return option._replace(
        allowed=f"{option.allowed}, or null", accepts=lambda value: value is None or option.accepts(value)
    )


def _is_switch(value: Any) -> bool:
    options.parse_switch("option", value)
    return True


def _is_checkpointing(value: Any) -> bool:
    values = value if isinstance(value, dict) else {"S_k3": value}
    for name, item in values.items():
        variant, separator, kernel_size = str(name).partition("_k")
        if not separator or not (OPTIONS["variant"].accepts(variant) and kernel_size in ("3", "5")):
            return False
        options.gradient_checkpointing(item)
    return True


def _is_patch_size(value: Any) -> bool:
    return bool(options.patch_size(value, 2 if isinstance(value, Sequence) and len(value) == 2 else 3))


def _is_device(value: Any) -> bool:
    import torch

    device = torch.device(value)
    return device.type != "cuda" or (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count())


def _is_spacing(value: Any) -> bool:
    lengths = value if isinstance(value, Sequence) else [value] * 3
    return len(lengths) == 3 and all(length is None or (_is_number(length) and length > 0) for length in lengths)


def _is_orientation(value: Any) -> bool:
    pairs = ("RL", "AP", "SI")
    return isinstance(value, str) and sorted(next(i for i in range(3) if c in pairs[i]) for c in value) == [0, 1, 2]


def _is_fold(value: Any) -> bool:
    return value == "all" or _is_integer(value, 0)


def _is_list_of(kind: type | tuple[type, ...], value: Any, among: Sequence[Any] | None = None) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(item, kind) and (among is None or item in among) for item in value)


SWITCH = Option("true or false", _is_switch)
PATH = Option("a path", lambda value: isinstance(value, (str, Path)), is_path=True)
POSITIVE = _number("above 0", lambda value: value > 0)

OPTIONS: dict[str, Option] = {
    "bundle_root": PATH,
    "dataset_dir": PATH,
    "ckpt_dir": PATH,
    "output_dir": PATH,
    "cache_dir": PATH,
    "input": _or_null(PATH),
    "datalist": _or_null(
        Option(
            "a list of images",
            lambda value: _is_list_of((str, Path, list, tuple, dict), value),
            is_path=True,
            is_list=True,
        )
    ),
    "checkpoint": _or_null(PATH),
    "upkern_checkpoint": _or_null(PATH),
    "pretrained": _or_null(PATH),
    "postprocess": _or_null(PATH),
    "variant": _one_of("S", "B", "M", "L"),
    "kernel_size": _one_of(3, 5),
    "in_channels": _or_null(_integer(1)),
    "out_channels": _or_null(_integer(2)),
    "spatial_dims": _or_null(_one_of(2, 3)),
    "slice_axis": _or_null(_one_of(0, 1, 2)),
    "spacing": _or_null(Option("one or three positive numbers (mm)", _is_spacing, is_list=True)),
    "orientation": _or_null(Option("axis codes such as 'RAS'", _is_orientation)),
    "patch_size": _or_null(
        Option("one or three (in 2D one or two) positive multiples of 16", _is_patch_size, is_list=True)
    ),
    "normalization": _or_null(
        Option(
            f"a list with one of {', '.join(SCHEMES)} per channel",
            lambda value: _is_list_of(str, value, SCHEMES),
            is_list=True,
        )
    ),
    "intensity": _or_null(
        Option(
            "a list of statistics per channel",
            lambda value: isinstance(value, dict) or _is_list_of((dict, type(None)), value),
        )
    ),
    "device": Option("a device of this computer, such as 'cpu', 'cuda' or 'cuda:1'", _is_device),
    "amp": SWITCH,
    "cpu_amp": SWITCH,
    "compile": SWITCH,
    "gradient_checkpointing": _or_null(
        Option("true, false, 'block' or 'expansion', or a dictionary of them by variant", _is_checkpointing)
    ),
    "fold": _or_null(Option("0, 1, 2, ... or 'all'", _is_fold)),  # null: inference only
    "folds": _or_null(
        Option(
            "a list of folds such as [0, 1, 2, 3, 4]",
            lambda value: _is_list_of((int, str), value) and all(_is_fold(fold) for fold in value),
            is_list=True,
        )
    ),
    "ensemble": _or_null(
        Option(
            "a list of folders of bundles",
            lambda value: isinstance(value, (str, Path)) or _is_list_of((str, int, Path), value),
            is_path=True,
            is_list=True,
        )
    ),
    "accumulate": _one_of("float32", "half"),
    "splits": _or_null(
        Option(
            "a list of folds or the path of a JSON file",
            lambda value: isinstance(value, str) or _is_list_of(dict, value),
            is_path=True,
        )
    ),
    "num_workers": _integer(0),
    "regions": _or_null(
        Option(
            'lists of labels by the name of the region, such as {"whole tumor": [1, 2, 3]}',
            lambda value: isinstance(value, dict) and all(_is_list_of(int, labels) for labels in value.values()),
        )
    ),
    "ignore_label": _or_null(_integer(1)),
    "part": _integer(0),
    "parts": _integer(1),
    "processes": _or_null(_integer(1)),
    "dummy_2d": SWITCH,
    "batch_size": _integer(1),
    "iterations_per_epoch": _integer(1),
    "epochs": _integer(1),
    "learning_rate": POSITIVE,
    "weight_decay": _number("of at least 0", lambda value: value >= 0),
    "gradient_clip": POSITIVE,
    "batch_dice": SWITCH,
    "seed": _or_null(_integer(0)),
    "val_interval": _integer(1),
    "pseudo_dice_batches": _integer(0),
    "augmentation_interpolation": _one_of("cubic", "linear"),
    "best_by": _one_of("volume", "patches"),
    "checkpoint_interval": _integer(1),
    "log_interval": _integer(1),
    "progress_bar": SWITCH,
    "resume": SWITCH,
    "overwrite": SWITCH,
    "dicom_seg": SWITCH,
    "save_probabilities": SWITCH,
    "save_regions": _or_null(SWITCH),
    "mirror": SWITCH,
    "tolerance": _number("of at least 0", lambda value: value >= 0),
    "tolerance_in_voxels": SWITCH,
    "format": _one_of("table", "nnunet"),
    "save_predictions": SWITCH,
    "overlap": _number("of at least 0 and below 1", lambda value: 0 <= value < 1),
    "sw_batch_size": _integer(1),
}

SECTION = re.compile(r"# --- (.+?) -+$")
LINE = re.compile(r"(\w+): .*?  # (.+)$")


def describe_options(*sources: str) -> list[Description]:
    """
    Return the options that files of ``configs/`` describe, in their order.

    Args:
        sources: names of the files without ``.yaml``, such as common and train.
    """
    found: dict[str, Description] = {}
    for source in sources:
        section = "general"
        for line in (config_sources() / f"{source}.yaml").read_text(encoding="utf-8").splitlines():
            if heading := SECTION.match(line):
                section = heading[1]
            elif (match := LINE.match(line)) and match[1] in OPTIONS:
                found[match[1]] = Description(match[1], section, match[2])
    return list(found.values())
