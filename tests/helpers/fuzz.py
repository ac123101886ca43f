"""Damaged files, drawn by hypothesis, and what an error must be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mednext_monai.errors import diagnosis

__all__ = ["bounded", "damaged_bytes", "damaged_json", "json_values", "only_ours"]


def bounded(max_examples: int, seconds: float = 20) -> Callable:
    """The same examples each time, and none that takes longer than this."""
    return settings(
        max_examples=max_examples,
        deadline=timedelta(seconds=seconds),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def only_ours(*names: str) -> Iterator[None]:
    """Accept success, or an error that this package raised with one of these names in its text."""
    try:
        yield
    except Exception as error:
        sentence = diagnosis(error)
        if sentence is None or not isinstance(error, (ValueError, OSError)):
            raise
        assert any(name in sentence for name in names), f"names none of {names}: {sentence}"


def json_values() -> st.SearchStrategy[Any]:
    """Values that JSON can hold, as Python's parser returns them, with the awkward ones more often than by chance."""
    texts = st.one_of(
        st.sampled_from(
            ["", " ", "0", "-1", "1.5", "ignore", "$x", "@x", "%x", "a#b", "../x", "/", "\0", "x\n", "\ud800"]
        ),
        st.text(max_size=8),
    )
    numbers = st.one_of(
        st.sampled_from([0, 1, 2, -1, 3, 10**9, 2**63, -(2**70), 0.0, 1.5, -0.0, 1e308, float("nan"), float("inf")]),
        st.integers(-9, 9),
    )
    leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> bytes:
    """A JSON document with up to three of its values replaced, removed or added, or with damaged text."""
    content = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        content = _changed(draw, content)
    text = json.dumps(content, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(text)) if draw(st.integers(0, 4)) == 0 else text


def _changed(draw: st.DrawFn, content: Any) -> Any:
    """Return the content with a change at a place that is drawn."""
    places = list(_places(content))
    holder, key = draw(st.sampled_from(places)) if places else (None, None)
    if holder is None:
        return draw(json_values())
    action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "replace":
        holder[key] = draw(json_values())
    elif action == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(draw(st.integers(0, len(holder))), draw(json_values()))
    else:
        holder[draw(st.text(max_size=8))] = draw(json_values())
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    yield None, None
    stack = [content]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else []
        for key in keys:
            yield holder, key
            stack.append(holder[key])


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, header: int | None = None) -> bytes:
    """
    Bytes with some replaced, removed or inserted, or cut off.

    Args:
        content: the whole file.
        header: the number of first bytes in which changes are drawn; ``None``: all.
    """
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(changed), header or len(changed)) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8]))
        action = draw(st.sampled_from(["replace", "replace", "replace", "insert", "remove", "cut"]))
        filling = draw(
            st.one_of(st.binary(min_size=length, max_size=length), st.sampled_from([b"\0", b"\xff", b"\x7f"]))
        )
        if action == "replace":
            changed[place : place + len(filling)] = filling
        elif action == "insert":
            changed[place:place] = filling
        elif action == "remove":
            del changed[place : place + length]
        else:
            del changed[place:]
    return bytes(changed)
