"""Promises of the report: the page is one file, says what the plan says, and shows the patient's left on the right."""

from __future__ import annotations

import base64
import io
import re

import nibabel as nib
import numpy as np
from helpers.datasets import AFFINE, describe, make_decathlon
from PIL import Image

from mednext_monai.pictures import COLORS
from mednext_monai.planning import plan, text_report


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


def test_a_picture_does_not_depend_on_how_the_files_store_the_axes(tmp_path):
    pages = []
    for codes in ("RAS", "LPS", "SAL", "PIR"):
        data = make_decathlon(tmp_path / codes / "data", cases=1)
        for file in data.glob("*Tr/*.nii.gz"):
            picture = nib.load(file)
            values = np.full(picture.shape, 50 if file.parent.name == "imagesTr" else 0, np.int16)
            values[17:19, 13:17, 8:11] += 1  # in RAS: right, anterior, superior
            picture = nib.Nifti1Image(values, AFFINE)
            turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
            nib.save(picture.as_reoriented(turn), file)
        plan(data, tmp_path / codes / "my.json", processes=0, progress=False)
        page = (tmp_path / codes / "my.html").read_text(encoding="utf-8")
        pages.append(re.findall(r"<img[^>]+>", page))
    assert len(pages[0]) == 3 and all(page == pages[0] for page in pages)
    for element in pages[0]:  # anterior or right is on the left of the page, superior or anterior at the top
        contour = np.argwhere((pixels(element) == COLORS[0]).all(-1))
        height, width = pixels(element).shape[:2]
        assert len(contour) and contour[:, 0].max() < height / 2 and contour[:, 1].max() < width / 2
