"""Options of the bundles, in every spelling in which they arrive: typed on a command line, in an overlay, from Python.

python-fire, through which MONAI reads its command line, leaves ``false``, ``no`` and ``cpu`` as text, and a text that
is not empty counts as true. The configs therefore pass what a user may set through these functions.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["gradient_checkpointing", "literal", "parse_switch", "patch_size", "path", "paths", "plain", "switch"]

SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
CHECKPOINTING = {"block": True, "off": False}


def switch(**option: Any) -> bool | None:
    """
    Return an on/off option as a bool; ``None`` stays ``None``.

    Args:
        option: the option by its name, one only: a bool, 0 or 1, or one of the texts true, false, yes, no, 0 and 1 in
            upper or lower case.

    Raises:
        ValueError: naming the option, if it is something else.
    """
    ((name, value),) = option.items()
    return None if value is None else parse_switch(name, value)


def parse_switch(name: str, value: Any) -> bool:
    """Return the value of the on/off option ``name``; values and errors as for :py:func:`switch`."""
    text = str(value).strip().lower()
    if text not in SWITCH or not isinstance(value, (bool, int, str)):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return SWITCH[text]


def gradient_checkpointing(
    gradient_checkpointing: Any, variant: str | None = None, kernel_size: int | None = None
) -> bool | str | None:
    """
    Return the option ``gradient_checkpointing`` as ``use_checkpoint`` of :py:func:`.networks.create_mednext`.

    Args:
        gradient_checkpointing: ``None`` or the text null or none, as published; block or true, off or false, where true
            and false may be spelled as for :py:func:`switch`; or expansion. A plan has a dictionary of them by variant,
            ``{"S_k3": False}``.
        variant: S, B, M or L, whose value of a dictionary is taken. Defaults to ``None``: there is no dictionary.
        kernel_size: of the variant. Defaults to ``None``.

    Returns:
        ``True``, ``False`` or ``"expansion"``; ``None`` also for a variant that is not in the dictionary.

    Raises:
        ValueError: if it is something else.
    """
    value = gradient_checkpointing
    if isinstance(value, Mapping):
        value = value.get(f"{variant}_k{kernel_size}")
    text = str(value).strip().lower()
    if value is None or text in ("null", "none"):
        return None
    if text == "expansion":
        return text
    if text not in CHECKPOINTING and (text not in SWITCH or not isinstance(value, (bool, int, str))):
        raise ValueError(
            f"gradient_checkpointing must be true, false, 'block', 'expansion' or null, got {gradient_checkpointing!r}."
        )
    return {**SWITCH, **CHECKPOINTING}[text]


def path(**option: Any) -> str | None:
    """
    Return an option that names a file or a folder as text; ``None`` stays ``None``.

    python-fire reads ``--input 2024`` as the number 2024, ``2024_10`` as 202410, ``2024.10`` as 2024.1 and ``a,b`` as a
    list. The name is then what stands on the command line. In an overlay or from Python, only an integer is a name.

    Args:
        option: the option by its name, one only.

    Raises:
        ValueError: naming the option, if the name cannot be recovered.
    """
    ((name, value),) = option.items()
    if value is None or isinstance(value, (str, os.PathLike)):
        return value if value is None else os.fspath(value)
    typed = _typed(name, value)
    if typed is not None:
        return typed
    if type(value) is not int:
        raise ValueError(
            f"{name} must be a path, got {value!r} ({type(value).__name__}); write a name that is also a Python value "
            "with its folder, such as ./2024.10."
        )
    return str(value)


def paths(**option: Any) -> list[str]:
    """
    Return an option that names files or folders as a list of texts; ``None`` is an empty list.

    python-fire reads ``[a,b]`` as a list, but ``[/data/a,b]`` as a text.

    Args:
        option: the option by its name, one only: a path, a list of paths, or the text of such a list.

    Raises:
        ValueError: as for :py:func:`path`.
    """
    ((name, value),) = option.items()
    if value is None:
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = [part for item in value[1:-1].split(",") if (part := item.strip().strip("'\""))]
    items = value if isinstance(value, (list, tuple)) else [value]
    return [found for item in items if (found := path(**{name: item})) is not None]


def _typed(name: str, value: Any) -> str | None:
    """Return the text after ``--name`` on the command line of this process, if fire reads it as ``value``."""
    from fire.parser import DefaultParseValue

    for flag, following in zip(sys.argv, [*sys.argv[1:], ""]):
        key, equals, text = flag.partition("=")
        text = text if equals else following
        if key.startswith("-") and key.lstrip("-").replace("-", "_") == name and DefaultParseValue(text) == value:
            return text
    return None


def patch_size(value: int | Sequence[int], spatial_dims: int = 3) -> list[int]:
    """
    Return the patch size in voxels along each axis.

    Args:
        value: one number for all axes, or one for each.
        spatial_dims: number of axes, 2 or 3. Defaults to 3.

    Raises:
        ValueError: if it is not one or ``spatial_dims`` positive multiples of what the network needs, 16.
    """
    from .networks import SHAPE_FACTOR  # imports torch

    sizes = [value] * spatial_dims if isinstance(value, int) else value
    whole = isinstance(sizes, Sequence) and all(type(size) is int for size in sizes)
    if not whole or len(sizes) != spatial_dims or any(size < SHAPE_FACTOR or size % SHAPE_FACTOR for size in sizes):
        axes = {2: "two", 3: "three"}[spatial_dims]
        two = f" for spatial_dims {spatial_dims}" if spatial_dims == 2 else ""
        raise ValueError(f"patch_size must be one or {axes} positive multiples of {SHAPE_FACTOR}{two}, got {value!r}.")
    return list(sizes)


def literal(value: Any) -> Any:
    """
    Return plain data as a config must hold it, so that MONAI reads it as it is.

    MONAI evaluates every text in a config that begins with ``$``, ``@`` or ``%`` and replaces ``#`` by ``::`` in all
    others. Paths and case ids are data, and a file may have any name: a text that MONAI would change is returned as an
    expression that consists of this text as a Python string. A dictionary with such a key, or with ``_target_``, from
    which MONAI would build an object, is returned as an expression that is a Python dictionary. All other values are
    returned unchanged. :py:func:`plain` is the inverse.

    Args:
        value: texts, numbers, booleans, ``None``, and lists and dictionaries of them.
    """
    if isinstance(value, Mapping):
        if any(isinstance(key, str) and (_is_changed(key) or key == "_target_") for key in value):
            return f"${_python(value)}"
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(item) for item in value]
    return f"${_python(value)}" if isinstance(value, str) and _is_changed(value) else value


def plain(value: Any) -> Any:
    """
    Return the data that :py:func:`literal` has written, without evaluating anything.

    Args:
        value: the content of a config. Only expressions that consist of one Python string, and dictionaries as written
            by :py:func:`literal`, are replaced; other expressions, references and macros are returned as they are.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.startswith("$"):
        try:
            constant = ast.literal_eval(value[1:])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
        if isinstance(constant, str) or (isinstance(constant, dict) and literal(constant) == value):
            return constant
    return value


def _is_changed(text: str) -> bool:
    """Return whether MONAI evaluates or changes a text in a config."""
    return text.startswith(("$", "@", "%")) or "#" in text or "::" in text


def _python(value: Any) -> str:
    """Return data as a Python expression of constants, in which no character has a meaning for MONAI."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(key)}: {_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_python, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    kept = {*" _-./,()"}
    return "'" + "".join(c if c.isalnum() or c in kept else f"\\U{ord(c):08x}" for c in value) + "'"
