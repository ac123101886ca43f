"""Whatever is typed after ``mednext`` ends with status 0, 1 or 2, and an error with our sentence as the last block."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from helpers.datasets import make_decathlon
from helpers.fuzz import bounded
from helpers.segmentations import make_component_set, write_pairs
from hypothesis import given
from hypothesis import strategies as st

from mednext_monai import bundles, cli
from mednext_monai.bundles import commands
from mednext_monai.bundles.options import OPTIONS

pytestmark = pytest.mark.slow
NOT_RUN = (
    "demo",
    "bundle build",
    "bundle new",
    "bundle zip",
    "bundle copy",
)  # take minutes, or write where they are told
NUMBERS = ["0", "1", "-1", "2", "0.5", "1e9", "nan", "inf", "1e-3", "0x10", "99999999999999999999", "1_0", "+1"]
ODD = ["", " ", "-", "--", "---", "=", "a=b", "null", "None", "true", "false", "[]", "[1,2", "{}", "{'a':1}", "(1,)"]
ODD += [
    "$x",
    "@x",
    "%x",
    "$__import__('os').getcwd()",
    "a#b",
    "a::b",
    "x\ny",
    "\\",
    "'",
    '"',
    "é",
    "\udcff",
    "*",
    "~",
    ".",
]
FILES = ["data", "pred", "ref", "task.json", "mine", "image.nii.gz", "no/such/file", "/dev/null", "/", "..", "model.pt"]
WORDS = ["2", "all", "cpu", "cuda", "S", "3", "table", "nnunet", "native", "monai", "mednext_s_k3", "CT", "RAS"]
RIGHT = {
    "evaluate-folder": ["pred", "ref", "--processes=1"],
    "find-postprocessing": ["pred", "ref", "out.json", "--processes=1"],
    "apply-postprocessing": ["pred", "out", "decision.json", "--processes=1"],
    "plan": ["data", "out.json", "--processes=1"],
    "convert": ["model.pt", "out.pt"],
    "upkern": ["model.pt", "out.pt"],
    "bundle new": ["S", "3", "task.json", "out"],
    "predict": ["mine", "image.nii.gz", "out"],
    "report": ["mine"],
    "preprocess": ["mine", "--part=0", "--parts=2"],
    **dict.fromkeys(("train", "evaluate", "cross-validate"), ["mine"]),
}  # what may be typed, to which more is added
VALUES = st.one_of(*map(st.sampled_from, (NUMBERS, ODD, FILES, WORDS)), st.text(max_size=6))


@functools.cache
def every_command() -> dict[str, list[str]]:
    """The words of each command and its options."""
    found = {}
    for name, item in cli._flat(cli.COMMANDS).items():
        options = list(OPTIONS) if isinstance(item, commands.Workflow) else list(inspect.signature(item).parameters)
        options += dict(item.own) if isinstance(item, commands.Workflow) else ()
        found[name] = [*options, "plan", "config", "gpus", "traceback", "help"]
    return found


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(list(every_command())))
    words = name.split() if draw(st.integers(0, 9)) else [draw(VALUES)]
    if draw(st.booleans()):
        words += RIGHT.get(name, [])
    else:
        words += draw(st.lists(st.sampled_from(FILES) | VALUES, max_size=3))
    for _ in range(draw(st.integers(0, 4))):
        option = draw(st.sampled_from(every_command()[name]) | st.text(max_size=6))
        option = draw(st.sampled_from([f"--{option}", f"--{option}", f"-{option}", option.replace("_", "-")]))
        if draw(st.booleans()):
            words += [f"{option}={draw(VALUES)}"]
        else:
            words += [option, *draw(st.lists(VALUES, max_size=2))]
    return words


def only_bind(function: Callable) -> Callable:
    """Return a command of the same arguments that does nothing."""
    return functools.wraps(function)(lambda *args, **kwargs: 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory with files of each kind."""
    folder = tmp_path_factory.mktemp("place")
    make_decathlon(folder / "data", cases=2)
    write_pairs(folder, make_component_set(1)[1][:1])
    (folder / "task.json").write_text("{}")
    (folder / "decision.json").write_text('{"for_which_classes": [1]}')
    (folder / "model.pt").write_bytes(b"no checkpoint")
    (folder / "image.nii.gz").write_bytes((folder / "pred" / "case_0.nii.gz").read_bytes())
    bundles.copy("mednext_s_k3", folder)
    os.rename(folder / "mednext_s_k3", folder / "mine")
    return folder


def snapshot(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in folder.rglob("*")}


@bounded(4000)
@given(words=command_lines())
def test_what_is_typed(place, words):
    started: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(commands, "run_command", lambda command, name: started.append(command) or 0)
        patch.setitem(cli.COMMANDS, "demo", only_bind(cli.COMMANDS["demo"]))
        group = {name: only_bind(command) for name, command in cli.COMMANDS["bundle"].items() if name != "list"}
        patch.setitem(cli.COMMANDS, "bundle", {**cli.COMMANDS["bundle"], **group})
        before = snapshot(place)
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = cli.main(words)
        after = snapshot(place)
    shown = errors.getvalue()
    assert status in (0, 1, 2), words
    assert "Traceback" not in shown + out.getvalue(), words
    if status:
        assert started == [] or words[0] == "cross-validate", words  # which starts several
        blocks = re.findall(r"^mednext: error: .+", shown, flags=re.MULTILINE)
        assert blocks, (words, shown)
        if status == 2:
            assert shown.rstrip().endswith("--help."), words
        assert after == before or words[0] in ("evaluate-folder", "apply-postprocessing"), words
    for path in sorted({path for path, _ in after - before}, reverse=True):  # what a command that succeeded wrote
        Path(path).unlink() if Path(path).is_file() else Path(path).rmdir()
