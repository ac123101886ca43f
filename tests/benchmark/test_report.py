"""Promise of the tables: they show what was measured."""

from __future__ import annotations

from helpers.benchmark import MACHINE, measurements

from mednext_monai.benchmark.report import as_markdown, as_text


def test_the_tables_show_what_was_measured():
    text = as_text(MACHINE, measurements())
    assert "forward: S k3, 64^3" in text and "memory: forward S k3, 64^3, tuned allocator" in text
    (line,) = (line for line in text.splitlines() if line.split()[:2] == ["monai", "4.25"])
    assert line.split() == "monai 4.25 4.00 4.50 0.118 3.80 3.60 4.00 output 3.0e-06".split()
    page = as_markdown(MACHINE, ["--size", "64"], measurements())
    assert "|  | ours | plain / ours | MONAI / ours | largest error |" in page
    assert "| forward S k3, 64^3 | 1.12 s | 2.00 | 3.80 (3.60 to 4.00) | 3e-06 |" in page
    assert "| memory forward S k3, 64^3, tuned allocator | 100 MiB |  | 2.50 |  |" in page
    assert "`python -m mednext_monai.benchmark --size 64`" in page
