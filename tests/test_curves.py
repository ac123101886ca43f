"""Promises of curves: all event files of a folder are read, and what is added later as well."""

from __future__ import annotations

from helpers.events import write_scalars

from mednext_monai.curves import Curves


def points(curves: Curves, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in curves(tag)]


def test_curves_of_several_files_are_read_as_they_grow(tmp_path):
    curves = Curves(tmp_path / "eval")
    assert points(curves, "loss") == []
    write_scalars(tmp_path / "eval", "loss", {1: 0.5, 2: 0.25})
    assert points(curves, "loss") == [(1, 0.5), (2, 0.25)] and points(curves, "dice") == []
    write_scalars(tmp_path / "eval", "dice", {2: 0.75})
    assert points(curves, "loss") == [(1, 0.5), (2, 0.25)] and points(curves, "dice") == [(2, 0.75)]
    assert curves.tags() == ["dice", "loss"]
