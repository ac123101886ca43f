"""Finding and copying the bundles, and what their pages and placeholders say."""

from __future__ import annotations

import json
import re

import pytest
import torch

from mednext_monai import bundles
from mednext_monai.bundles.library import PLACEHOLDER
from mednext_monai.networks import VARIANTS

NAMES = bundles.names()


def variant_of(name: str) -> tuple[str, int]:
    return name.split("_")[1].upper(), int(name[-1])


def test_there_is_a_bundle_for_each_variant_and_kernel():
    assert {variant_of(name) for name in NAMES} == {(v, k) for v in VARIANTS for k in (3, 5)}
    for name in NAMES:
        content = json.loads((bundles.path(name) / "configs" / "train.json").read_text())
        assert (content["variant"], content["kernel_size"]) == variant_of(name)


def test_the_page_maps_all_19_published_trainers_to_a_bundle_and_a_learning_rate():
    rates = {"": None, "_lr_5e_4": 0.0005, "_lr_25e_5": 0.00025, "_lr_1e_4": 0.0001}
    published = {f"{variant}_kernel3" for variant in "SBML"} | {
        f"{variant}_kernel5{rate}" for variant in "SBML" for rate in rates if (variant, rate) != ("S", "_lr_5e_4")
    }
    page = (bundles.path("mednext_s_k3") / "docs" / "README.md").read_text()
    section = page.split("## Published settings")[1].split("\n## ")[0]
    found = []
    for row in section.splitlines()[6:]:
        cells = [re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:-1]]
        if len(cells) != 3:
            continue
        for trainer, bundle in zip(cells[0], cells[1]):
            variant, kernel, rate = re.fullmatch(r"([SBML])_kernel([35])(\w*)", trainer).groups()
            assert bundle == f"mednext_{variant.lower()}_k{kernel}" and bundle in NAMES
            assert cells[2] == ([f"--learning_rate {rates[rate]}"] if rate else [])
            found.append(trainer)
        assert len(cells[0]) == len(cells[1])
    assert len(found) == 19 and set(found) == published


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="mednext_s_k3"):
        bundles.path("mednext_xl_k3")


def test_copy_never_overwrites(tmp_path):
    folder = bundles.copy("mednext_s_k3", tmp_path)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        bundles.copy("mednext_s_k3", tmp_path)
    assert (folder / "mine.txt").read_text() == "mine"


def test_the_placeholder_runs_nothing_even_where_pickles_are_trusted(tmp_path):
    (tmp_path / "model.pt").write_bytes(PLACEHOLDER)
    with pytest.raises(ModuleNotFoundError, match="no trained weights"):
        torch.load(tmp_path / "model.pt", weights_only=False)
