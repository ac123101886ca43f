"""Options mean what is typed, whoever reads it; anything else is an error that names the option."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from mednext_monai.options import gradient_checkpointing, literal, patch_size, path, paths, plain, switch


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (1, True), ("true", True), ("True", True), ("YES", True), ("1", True)]
    + [(False, False), (0, False), ("false", False), ("False", False), ("no", False), ("0", False), (None, None)],
)
def test_an_on_off_option_takes_every_usual_spelling(value, expected):
    assert switch(mirror=value) is expected


@pytest.mark.parametrize("value", ["of", "", 2, 1.0, [True], "none"])
def test_anything_else_is_an_error_that_names_the_option(value):
    with pytest.raises(ValueError, match="mirror must be true or false, got "):
        switch(mirror=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("true", True), ("Yes", True), (1, True), ("1", True), ("block", True), ("Block", True)]
    + [(False, False), ("false", False), ("no", False), (0, False), ("off", False), ("OFF", False)]
    + [("expansion", "expansion"), (" Expansion", "expansion"), (None, None), ("null", None), ("None", None)],
)
def test_gradient_checkpointing_takes_every_usual_spelling_also_by_variant(value, expected):
    assert gradient_checkpointing(value) == expected and type(gradient_checkpointing(value)) is type(expected)
    assert gradient_checkpointing({"L_k5": value, "S_k5": "expansion"}, "L", 5) == expected
    assert gradient_checkpointing({"L_k5": value}, "L", 3) is None


@pytest.mark.parametrize("value", ["on", "", 2, 1.0, ["block"], "expand", "stage"])
def test_what_is_no_setting_of_gradient_checkpointing_is_an_error(value):
    message = "gradient_checkpointing must be true, false, 'block', 'expansion' or null, got "
    with pytest.raises(ValueError, match=message):
        gradient_checkpointing(value)
    with pytest.raises(ValueError, match=message):
        gradient_checkpointing({"S_k3": value}, "S", 3)


def test_one_patch_size_is_that_of_all_axes():
    assert patch_size(64) == [64, 64, 64] and patch_size((48, 64, 32)) == [48, 64, 32]
    for wrong in (100, [64, 64], [64, 64, 60], "64", True, [64.0] * 3, 0, None):
        with pytest.raises(ValueError, match="patch_size must be one or three positive multiples of 16, got "):
            patch_size(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "$1 + 1",
        "@missing",
        "%missing.json::a",
        "a#b",
        "a::b",
        "@#up",
        "a @#b",
        'it\'s \\ "é" #1',
        "plain/path.nii.gz",
        "",
    ],
)
def test_a_text_is_read_from_a_config_as_it_was_whatever_it_contains(text):
    data = {"ids": [text, {"id": text}], "path": text, "names": {text: text, "_target_": text, "n": [1, text]}}
    parser = ConfigParser({key: literal(value) for key, value in data.items()})
    assert {key: parser.get_parsed_content(key) for key in data} == data
    assert plain(literal(data)) == data and plain(literal(literal(data))) == literal(data)


def test_literal_leaves_what_a_config_does_not_change():
    value = {"ids": ["case_1", 3, 0.5, None, True], "path": "/data/a b/c@d.nii.gz"}
    assert literal(value) == value


@pytest.mark.parametrize(
    ("value", "name"), [("2024", "2024"), (2024, "2024"), (-1, "-1"), (Path("a/b"), "a/b"), ("", ""), (None, None)]
)
def test_a_path_may_be_a_number(value, name):
    assert path(output_dir=value) == name


@pytest.mark.parametrize("value", [2024.1, True, ["a"], ("a", "b"), {"a": 1}], ids=repr)
def test_a_path_that_cannot_be_recovered_is_refused_with_the_way_to_write_it(value):
    with pytest.raises(ValueError, match=r"input must be a path, got .* with its folder, such as ./2024.10"):
        path(input=value)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("2024.10", 2024.1), ("2024_10", 202410), ("0x10", 16), ("a,b", ("a", "b")), ("True", True), ("1e3", 1000.0)],
)
def test_a_path_is_what_stands_on_the_command_line(monkeypatch, typed, value):
    for arguments in (["--ckpt_dir", typed], [f"--ckpt_dir={typed}"], ["--input", "x", "--ckpt-dir", typed]):
        monkeypatch.setattr(sys, "argv", ["program", "run", "--epochs", "7", *arguments])
        assert path(ckpt_dir=value) == typed
    assert path(output_dir=7) == "7"  # not on the command line


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        ("/a b/c", ["/a b/c"]),
        ("a,b", ["a,b"]),
        (2024, ["2024"]),
        (["a", 2024], ["a", "2024"]),
        ("[/a/b, 'c d',2024]", ["/a/b", "c d", "2024"]),
        ("[]", []),
    ],
)
def test_paths_are_a_list_in_every_spelling(value, names):
    assert paths(ensemble=value) == names


@pytest.mark.parametrize(
    "text", ["$open('pwned', 'w')", "$'a'.upper()", "$f'{1}'", "$b'a'", "$['a']", "${'a': 1}", "$1", "$'", "@a", "%a"]
)
def test_only_a_string_constant_is_plain_text(text):
    assert plain([text, {"a": text}]) == [text, {"a": text}]


def test_plain_text_of_a_string_constant():
    assert plain({"a": ["$'b c'", '$"\\x24d"', "e", 1]}) == {"a": ["b c", "$d", "e", 1]}
