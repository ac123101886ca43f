"""What the classes of a segmentation are: names and codes, as DICOM-SEG states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["MAX_TEXT", "Code", "Segment", "make_segments"]

MAX_TEXT = 64  # characters of a name in DICOM


class Code(NamedTuple):
    """A concept in a coding scheme, such as SNOMED CT (``SCT``)."""

    value: str
    scheme: str
    meaning: str


BODY_STRUCTURE = Code("123037004", "SCT", "Body structure")
ORGAN = Code("113343008", "SCT", "Organ")


class Segment(NamedTuple):
    """A class: its value in the class map, its name, and what it is."""

    value: int
    name: str
    category: Code = BODY_STRUCTURE
    type: Code = ORGAN
    modifier: Code | None = None  # of the type, such as its side


def make_segments(names: Sequence[str], codes: Mapping[str, Any] | None = None, where: str = "codes") -> list[Segment]:
    """
    Return the segments of the classes that have a name.

    Args:
        names: name of each class by its value, background first, which is no segment; an empty one is left out.
        codes: by the value of a class, as text, ``{"category": code, "type": code, "modifier": code}``, in which a code
            is ``{"value":, "scheme":, "meaning":}``. A missing category is a body structure, a missing type an organ,
            and a class may have no modifier. Defaults to ``None``.
        where: the place of ``codes``, for messages.

    Raises:
        ValueError: if ``codes`` is not that, or has another class.
    """
    codes = {} if codes is None else codes
    values = [str(value) for value in range(1, len(names))]
    if not isinstance(codes, Mapping) or not set(codes) <= set(values):
        raise ValueError(f"{where} must be an object whose keys are classes, {', '.join(values)}; got {codes!r}.")
    segments = []
    for value in values:
        entry = codes.get(value, {})
        if not isinstance(entry, Mapping) or not set(entry) <= {"category", "type", "modifier"}:
            raise ValueError(f"{where}, class {value}: the keys must be category, type and modifier, got {entry!r}.")
        stated = {key: _code(code, f"{where}, class {value}, {key}") for key, code in entry.items()}
        name = " ".join(names[int(value)].replace("\\", "/").split())[:MAX_TEXT]
        segments += [Segment(int(value), name, **stated)] * bool(name)
    return segments


def _code(code: Any, where: str) -> Code:
    texts: list[Any] = [code.get(field) for field in Code._fields] if isinstance(code, Mapping) else []
    limits = (16, 16, MAX_TEXT)
    if not texts or not all(isinstance(t, str) and 0 < len(t) <= n and "\\" not in t for t, n in zip(texts, limits)):
        raise ValueError(f"{where}: must be value, scheme (at most 16 characters each) and meaning; got {code!r}.")
    return Code(*texts)
