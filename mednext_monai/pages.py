"""Self-contained HTML pages: the style, tables and pictures that the reports of a plan and of a run share.

All texts are escaped here, except those that are documented as HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from .pictures import class_color

__all__ = ["inline_image", "inline_png", "lead", "legend", "page", "row", "table"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: #566069; margin-top: 0; }
table { border-collapse: collapse; min-width: 22rem; } th { text-align: left; color: #566069; font-weight: 600; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e6e9ec; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff6df; border-left: 4px solid #e0a100; padding: .6rem 1rem; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; } .row svg { width: 18.5rem; }
figure { margin: 0 0 1.2rem; } figcaption { color: #566069; } img { background: #000; max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #566069; } svg text.title { font-weight: 600; fill: #1d2329; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
.chart svg { width: 100%; max-width: 46rem; }
summary { cursor: pointer; color: #3b6fb6; }
"""


def page(title: str, heading: str, sections: Iterable[str]) -> str:
    """Return a page with its title, a heading and sections, which are HTML."""
    return "\n".join(
        [
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
            f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
            f"<h1>{escape(heading)}</h1>",
            *sections,
            "</body></html>\n",
        ]
    )


def row(items: Iterable[str]) -> str:
    """Return pieces of HTML beside each other."""
    return f"<div class='row'>{''.join(items)}</div>"


def table(heads: Sequence[str], rows: Iterable[Sequence], numbers: Sequence[int] = ()) -> str:
    """Return a table, right-aligned in the columns ``numbers``."""

    def cells(values: Sequence, tag: str) -> str:
        kinds = (" class='number'" if column in numbers else "" for column in range(len(values)))
        return "".join(f"<{tag}{kind}>{escape(str(value))}</{tag}>" for kind, value in zip(kinds, values))

    head = f"<tr>{cells(heads, 'th')}</tr>" if any(heads) else ""
    body = "".join(f"<tr>{cells(list(values), 'td')}</tr>" for values in rows)
    return f"<table>{head}{body}</table>"


def lead(text: str) -> str:
    """Return a paragraph."""
    return f"<p class='lead'>{escape(text)}</p>"


def inline_image(picture: Image.Image, alt: str) -> str:
    """Return a picture whose data are in the page."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return inline_png(stream.getvalue(), picture.size, alt)


def inline_png(content: bytes, size: tuple[int, int], alt: str) -> str:
    """Return a PNG file of ``size`` (width, height) whose data are in the page."""
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/png;base64,{data}" width="{size[0]}" height="{size[1]}" alt="{escape(alt)}">'


def legend(labels: Sequence[str]) -> str:
    """Return the colors of the classes; the first one, the background, has none."""
    return row(
        f"<span><span class='swatch' style='background:rgb{class_color(value)}'></span>{value} {escape(name)}</span>"
        for value, name in enumerate(labels)
        if value
    )
