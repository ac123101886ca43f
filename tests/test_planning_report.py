"""The page needs no other file, says what the plan says, and shows left on the right."""

from __future__ import annotations

import base64
import io
import re

import nibabel as nib
import numpy as np
from helpers.datasets import AFFINE, describe, make_decathlon
from PIL import Image

from mednext_monai.planning import plan, text_report
from mednext_monai.planning.pictures import histogram, overlay


def pixels(element: str) -> np.ndarray:
    data = re.search(r"base64,([^\"]+)", element)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)


def test_the_page_is_one_file_and_text_from_outside_is_escaped(tmp_path):
    make_decathlon(tmp_path / "data", channels=("T1", "<b>T2"))
    describe(tmp_path / "data", name="<script>alert(1)</script>", labels={"0": "background", "1": "a&b", "2": "two"})
    result = plan(tmp_path / "data", tmp_path / "my.json", processes=0, progress=False)
    page = (tmp_path / "my.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>T2" not in page and "&lt;b&gt;T2" in page and "a&amp;b" in page
    assert not re.search(r"https?://|<link|@import|url\(", page)
    assert page.count('<img src="data:image/png;base64,') == 4 * 3  # three cases, both channels of one of them
    assert page.count("<svg") == 3 * 3 + 2  # shape, resampled shape, spacing; an intensity for each channel
    assert all(len(np.unique(pixels(element))) > 8 for element in re.findall(r"<img[^>]+>", page))
    assert page.count("<tr><td>0</td><td class='number'>4</td><td class='number'>2</td></tr>") == 1  # fold 0
    for decision in result["_plan_"]["decisions"]:
        assert decision["why"] in page.replace("&#x27;", "'")


def test_the_summary_for_the_terminal_says_what_was_decided(tmp_path):
    text = text_report(plan(make_decathlon(tmp_path / "data"), tmp_path / "my.json", processes=0, progress=False))
    assert text.startswith("Synthetic: 6 cases, channels MRI, 3 classes (decathlon)\n")
    assert "  patch_size: 32 x 32 x 32\n" in text and "  batch_dice: no\n" in text
    assert max(map(len, text.splitlines())) <= 110


def test_an_overlay_does_not_depend_on_how_the_file_stores_the_axes():
    image = np.full((12, 16, 10), 50.0)
    label = np.zeros((12, 16, 10), np.int16)
    label[9:11, 12:15, 7:9] = 1  # in RAS: right, front, top
    picture = nib.Nifti1Image(image, AFFINE)
    expected = overlay(image, label, AFFINE, (0, 100))
    for codes in ("LPS", "SAL", "PIR"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
        turned = picture.as_reoriented(turn)
        stored = nib.apply_orientation(label, turn)
        assert overlay(turned.get_fdata(), stored, turned.affine, (0, 100)) == expected
    for element in expected:  # front or right is on the left of the page, top or front at the top
        red = np.argwhere((pixels(element)[..., 0] - pixels(element)[..., 1]) > 60)
        height, width = pixels(element).shape[:2]
        assert len(red) and red[:, 0].max() < height / 2 and red[:, 1].max() < width / 2


def test_a_histogram_holds_every_value_once():
    values = np.array([3.0, 3, 4, 8, 8, 8, 8])
    svg = histogram([("", "#000000", values)], "shape", "voxels")
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    np.testing.assert_allclose(np.array(heights) / max(heights), np.array([2, 1, 4]) / 4, atol=0.01)
    assert histogram([("", "#000000", np.ones(5))], "one <value>", "mm").count("<rect") == 1
    assert "one &lt;value&gt;" in histogram([("", "#000000", np.ones(5))], "one <value>", "mm")
