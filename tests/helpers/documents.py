"""What the pages for users tell them to type: shell commands, options and Python code, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import NamedTuple

from mednext_monai import bundles

__all__ = ["PAGES", "Page", "read_page"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mednext_monai"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FOREIGN_COLUMN = re.compile(r"^\| there \| here \|\n\| --- \| --- \|\n((?:\|.*\n)+)", re.MULTILINE)
PAGES = ("README", "bundle", "task", "benchmark", "nnunet", "configs", "tests")


class Page(NamedTuple):
    """The code of a page: lines and spans for a shell, spans that are options only, Python, data, dotted names."""

    commands: list[str]
    spans: list[str]
    options: list[str]
    python: list[str]
    data: list[str]
    names: list[str]


def read_page(name: str) -> Page:
    """Return the code of one of the ``PAGES``, with the names that a bundle has there."""
    text = _text(name)
    page = Page([], [], [], [], [], [])
    for language, block in FENCE.findall(text):
        if language == "python":
            page.python.append(block)
        elif block.lstrip().startswith(('"', "{")):
            page.data.append(block)
        elif language != "bibtex":
            page.commands.extend(line for line in block.replace("\\\n", " ").splitlines() if line.strip())
    text = FOREIGN_COLUMN.sub(lambda table: "\n".join(row.split(" | ", 1)[1] for row in table[1].splitlines()), text)
    for span in SPAN.findall(FENCE.sub("", text)):
        span = " ".join(span.split())
        if re.match(r"--[a-z]", span):
            page.options.append(span)
        elif re.match(r"(mednext|python|torchrun|pip|pytest|tensorboard|mlflow) ", span):
            page.spans.append(span)
        elif re.match(r"(from|import) ", span):
            page.python.append(span)
        elif re.fullmatch(r"(mednext_monai|monai)(\.\w+)+", span):
            page.names.append(span)
    return page


def _text(name: str) -> str:
    if name == "bundle":  # as it is built for one of the bundles
        return (bundles.path("mednext_s_k3") / "docs" / "README.md").read_text(encoding="utf-8")
    if name == "task":
        text = (PACKAGE / "bundles" / "task_readme.md").read_text(encoding="utf-8")
        return Template(text).safe_substitute(name="my_bundle")
    folder = {"README": ROOT, "configs": ROOT / "configs", "tests": ROOT / "tests"}.get(name, PACKAGE / name)
    return (folder / "README.md").read_text(encoding="utf-8")
