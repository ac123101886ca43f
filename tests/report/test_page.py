"""The page about a run: complete, self-contained, well-formed, and without anything that a name could execute."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import make_decathlon
from helpers.events import write_scalars
from PIL import Image

from mednext_monai.cli import main
from mednext_monai.data import read_dataset
from mednext_monai.data.io import read_label, write_segmentation
from mednext_monai.evaluation import Labels, evaluate_folder, write_evaluation
from mednext_monai.report import write_report
from mednext_monai.weights import task_settings, training_settings
from mednext_monai.weights.settings import attach_settings

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


class Checker(HTMLParser):
    """Collect the elements of a page; every element must be closed in its order, and load nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            assert "url(" not in (value or "") and "javascript:" not in (value or "")
            self.ids += [value] if name == "id" else []
            assert name not in ("src", "href") or value.startswith("data:image/png;base64,")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):  # <rect ... />, of SVG only
        assert "svg" in self.open
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            assert "url(" not in data and "@import" not in data
        self.texts.append(data)


def check(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.open and not {"script", "link", "iframe", "object", "embed"} & set(checker.tags)
    assert len(set(checker.ids)) == len(checker.ids)
    assert all(checker.tags.count(tag) == 1 for tag in ("html", "head", "body", "h1"))
    return checker


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle after training and evaluation; one class has an evil name."""
    folder, data = tmp_path / "bundle", make_decathlon(tmp_path / "data", cases=5)
    task = task_settings({"in_channels": 1, "out_channels": 3})
    settings = training_settings(task, "S", 3, 0, read_dataset(data).cases[:4], data)
    settings["labels"] = ["background", EVIL, "two"]
    (folder / "models").mkdir(parents=True)
    torch.save(attach_settings({"a": torch.zeros(1)}, settings), folder / "models/model.pt")
    write_scalars(folder / "eval", "mean_train_loss", {1: 1.5, 2: 0.5})
    write_scalars(folder / "eval", "val_mean_dice", {2: 0.625})
    for i, case in enumerate(read_dataset(data).cases[2:]):
        label, affine = read_label(case["label"])
        label[: 3 * i + 4] = 0
        write_segmentation(label, folder / f"eval/predictions/{case['id']}.nii.gz", affine=affine)
    labels = Labels({EVIL: 1, "two": 2})
    found = evaluate_folder(folder / "eval/predictions", data / "labelsTr", labels, 1.0, False, True, 1)
    found.settings["dataset_dir"] = str(data)
    write_evaluation(found, folder / "eval")
    return folder


def test_the_page_has_curves_boxes_cases_settings_versions_and_hardware(bundle, capsys):
    assert main(["report", str(bundle)]) == 0
    page = bundle / "eval/report.html"
    assert capsys.readouterr().out == f"wrote {page}\n"
    found = check(page)
    assert found.tags.count("svg") == 2 + 2 and found.tags.count("img") == 3
    text = "\n".join(found.texts)
    for expected in ("best case: case_02", "median case: case_03", "worst case: case_04", "mean_train_loss", EVIL):
        assert expected in text
    assert "Settings of model.pt" in text and "variant" in text and "cores" in text and torch.__version__ in text
    assert EVIL not in page.read_text()
    before = page.read_bytes()
    assert main(["report", str(bundle)]) == 0 and page.read_bytes()[:200] == before[:200]  # its own page is replaced


def test_what_is_missing_is_left_out_with_a_sentence(bundle, tmp_path):
    shutil.rmtree(bundle / "eval/predictions")
    (bundle / "models/model.pt").unlink()
    for file in (bundle / "eval").glob("events*"):
        file.unlink()
    page = write_report(bundle, tmp_path / "page.html")
    text = "\n".join(check(page).texts)
    assert "The picture of the best case is left out: there is no" in text and "There are no curves" in text
    assert "No checkpoint in" in text and check(page).tags.count("img") == 0
    (bundle / "eval/metrics.csv").unlink()
    with pytest.raises(ValueError, match="has no training and no evaluation to report"):
        write_report(bundle, page)


def test_the_pictures_need_the_data_set(bundle, tmp_path):
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    page = write_report(bundle)
    assert check(page).tags.count("img") == 0 and "is left out" in page.read_text()
    assert check(write_report(bundle, dataset_dir=moved)).tags.count("img") == 3


def test_a_file_of_others_is_not_replaced(bundle, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ValueError, match="mine.html exists and is not a report"):
        write_report(bundle, tmp_path / "mine.html")
    write_report(bundle, tmp_path / "mine.html", overwrite=True)


def test_a_browser_shows_it(bundle, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    page, picture = write_report(bundle), tmp_path / "screen.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1000,3000", f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (pixels.sum(-1) == 3 * 255).mean() > 0.3  # the page is white
    for color in ((0, 114, 178), (207, 224, 242)):  # a curve, and the boxes of the plots
        assert (np.abs(pixels - color).max(-1) < 12).sum() > 50
