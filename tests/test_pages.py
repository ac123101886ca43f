"""Texts in a page are escaped; its pictures are in it."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mednext_monai.pages import inline_image, legend, page, table


def test_texts_are_escaped_and_pictures_are_inline():
    text = page("a < b", "c & d", [table(("<i>",), [["<b>"]], [0]), legend(["background", "<u>"])])
    assert "<title>a &lt; b</title>" in text and "<h1>c &amp; d</h1>" in text
    assert "<td class='number'>&lt;b&gt;</td>" in text and "<th class='number'>&lt;i&gt;</th>" in text
    assert "1 &lt;u&gt;" in text and "0 background" not in text
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    found = inline_image(picture, 'a "b"')
    data = base64.b64decode(found.split("base64,")[1].split('"')[0])
    assert Image.open(io.BytesIO(data)).getpixel((2, 1)) == (1, 2, 3) and 'alt="a &quot;b&quot;"' in found
