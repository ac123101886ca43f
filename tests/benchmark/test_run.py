"""Promises of a run: nothing is missing from what it writes, and an allocator is a process. No time is asserted."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from helpers.benchmark import measurements, run

from mednext_monai.benchmark.__main__ import main
from mednext_monai.benchmark.run import TUNED, environment


def test_data_sections_and_memory_name_peers_that_are_missing(tmp_path, capsys):
    memory, other, augmentation, preprocessing = run(
        tmp_path, "--sections", "memory,augmentation,preprocessing", "--contestants", "ours"
    )
    assert [memory["case"], other["case"]] == ["forward S k3, 32^3", "training S k3, 32^3"]
    assert memory["unit"] == "MiB" and other["values"]["ours"][0] > memory["values"]["ours"][0] > 0
    assert len(augmentation["values"]["ours"]) == 2 and augmentation["work_unit"] == "patches/s"
    assert {"ours", "monai"} <= set(preprocessing["values"])
    text = capsys.readouterr().out
    for peer, found in (("batchgeneratorsv2", augmentation), ("scikit-image", preprocessing)):
        installed = importlib.util.find_spec({"scikit-image": "skimage"}.get(peer, peer)) is not None
        assert (peer in found["values"]) == installed == (f"{peer} skipped: not installed" not in text)
        if installed and found is preprocessing:
            assert found["agreement"][peer]["output"] < 1e-5 and found["agreement"][peer]["labels"] < 1e-2


def test_the_allocator_s_settings_are_set_and_unset(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert not set(TUNED) & set(environment("default"))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert {name: environment("tuned")[name] for name in TUNED} == TUNED
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert main(["--allocator", "both"]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_another_allocator_is_another_process(tmp_path):
    arguments = ["--sections", "forward", "--contestants", "ours,plain", "--allocator", "tuned"]
    (found,) = run(tmp_path, *arguments)
    assert found["allocator"] == "tuned" and set(found["values"]) == {"ours", "plain"}


def test_both_allocators_end_in_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("mednext_monai.benchmark.run.environment", lambda allocator: {})
    monkeypatch.setattr("mednext_monai.benchmark.run._measure_again", lambda *_: measurements()[:1])
    assert [m["allocator"] for m in run(tmp_path, "--allocator", "both")] == ["default", "tuned"]


def test_without_matplotlib_there_is_no_chart_and_the_run_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mednext_monai.benchmark.run._measure", lambda options: measurements())
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "mednext_monai.benchmark.plot", raising=False)
    assert len(run(tmp_path)) == 2 and not (tmp_path / "benchmark.png").exists()
    assert "no chart: matplotlib is not installed; pip install 'mednext-monai[benchmark]'" in capsys.readouterr().err
