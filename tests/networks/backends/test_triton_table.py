"""What was measured on this computer: where it is kept, for what it holds, and that a damaged file costs a line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from mednext_monai.networks.backends.triton import table
from mednext_monai.networks.backends.triton.table import Key, keys_of

CPU = torch.device("cpu")
KEY = Key((("MedNeXtBlock", 4),), (2, 1, 32, 32, 32), ("torch.float32", "torch.float32", ""), True, False)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path))
    table._read_keys.cache_clear()
    return tmp_path


def entry(key: Key = KEY, **more) -> dict:
    return json.loads(json.dumps({"key": key._asdict(), **more}))


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"MEDNEXT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/tuned.json"),
        ({"MEDNEXT_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/mednext/tuned.json"),
        ({"MEDNEXT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/mednext/tuned.json"),
    ],
)
def test_the_file_is_where_the_environment_says(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert table.cache_file() == Path(expected)


def test_what_is_written_is_read_again():
    assert keys_of(CPU) == frozenset()
    other = KEY._replace(compiled=True)
    file = table.update([KEY._asdict(), other._asdict()], [entry()], table.environment(CPU))
    assert file == table.cache_file()
    assert keys_of(CPU) == {KEY}


def test_a_measurement_replaces_the_one_before_and_leaves_others():
    here, other = table.environment(CPU), KEY._replace(training=False)
    elsewhere = {**here, "gpu": "another"}
    table.update([KEY._asdict(), other._asdict()], [entry(), entry(other)], here)
    table.update([KEY._asdict()], [entry()], elsewhere)
    table.update([KEY._asdict()], [], here)  # no longer exact or faster
    assert keys_of(CPU) == {other}
    entries = json.loads(table.cache_file().read_text())["entries"]
    assert [(item["environment"]["gpu"], item["key"]["training"]) for item in entries] == [
        (here["gpu"], False),
        ("another", True),
    ]


@pytest.mark.parametrize("what", ["gpu", "driver", "torch", "triton", "mednext_monai", "kernels"])
def test_entries_of_another_gpu_driver_or_version_do_not_count(what):
    table.update([KEY._asdict()], [entry()], {**table.environment(CPU), what: "another"})
    assert keys_of(CPU) == frozenset()


def test_on_trial_only_the_key_on_trial_counts():
    other = KEY._replace(training=False)
    table.update([KEY._asdict()], [entry()], table.environment(CPU))
    with table.trial(other):
        assert keys_of(CPU) == {other}
    assert keys_of(CPU) == {KEY}


def damaged(change) -> bytes:
    content = {"format": 1, "entries": [{**entry(), "environment": table.environment(CPU)}]}
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"format": 1',
        b"[]",
        b"{}",
        b'{"format": 2, "entries": []}',
        b'{"format": 1, "entries": 3}',
        b'{"format": 1, "entries": [3]}',
        damaged(lambda c: c["entries"][0].pop("key")),
        damaged(lambda c: c["entries"][0].update(environment="here")),
        damaged(lambda c: c["entries"][0]["key"].update(shape=[1, 2])),
        damaged(lambda c: c["entries"][0]["key"].update(shape=[1, 2, 3, 4, "5"])),
        damaged(lambda c: c["entries"][0]["key"].update(types=[1, 2, 3])),
        damaged(lambda c: c["entries"][0]["key"].update(training="yes")),
        damaged(lambda c: c["entries"][0]["key"].update(structure={"a": 1})),
    ],
)
def test_a_damaged_file_is_ignored_with_a_line_and_written_anew(folder, caplog, content):
    table.cache_file().write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert keys_of(CPU) == frozenset()
        assert keys_of(CPU) == frozenset()
    (record,) = caplog.records  # once, not at every forward pass
    message = record.getMessage()
    assert str(table.cache_file()) in message and "mednext tune" in message and "\n" not in message
    table.update([KEY._asdict()], [entry()], table.environment(CPU))
    assert keys_of(CPU) == {KEY}
