"""Curves and box plots show the values, at their places, and escape every text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from mednext_monai.report.figures import BASE, LEFT, NAMES, RIGHT, TOP, box_plot, line_chart


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)  # well-formed XML


def places(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.attrib["points"].split()]


def test_a_curve_spans_the_plot_and_its_values_are_linear():
    chart = parse(line_chart("loss <b>", "epoch", {"a & b": [(1, 0.0), (2, 1.0), (3, 0.5), (4, math.nan)], "c": []}))
    first, second = chart.iter("polyline")
    middle = (LEFT + RIGHT) / 2
    assert places(first) == [(LEFT, BASE), (middle, TOP), (RIGHT, (TOP + BASE) / 2)] and places(second) == []
    texts = [text.text for text in chart.iter("text")]
    assert {"loss <b>", "a & b", "c", "epoch", "0", "1"} <= set(texts)


def test_a_long_curve_is_thinned_to_means_and_one_point_is_a_dot():
    long = [(float(i), float(i // 20 % 2) + 8 * (i % 2) - 4) for i in range(10000)]
    chart = parse(line_chart("loss", "iteration", {"long": long}))
    (curve,) = chart.iter("polyline")
    found = places(curve)
    assert len(found) == 500 and {y for _, y in found[::2]} == {BASE} and {y for _, y in found[1::2]} == {TOP}
    assert len(list(parse(line_chart("dice", "epoch", {"one": [(3, 0.5)]})).iter("circle"))) == 1
    parse(line_chart("nothing", "epoch", {"none": []}))


def test_a_box_has_quartiles_median_and_every_case():
    values = {f"case <{i}>": value for i, value in enumerate([0.0, 0.5, 0.6, 0.7, 0.8])} | {"none": math.nan}
    chart = parse(box_plot("Dice", {"liver": values, "tumor & more": {"a": math.nan}}))
    width = RIGHT - 10 - NAMES

    def value(x: str) -> float:
        return (float(x) - NAMES) / width

    (box,) = chart.iter("rect")
    assert value(box.attrib["x"]) == pytest.approx(0.5, abs=1e-3)
    assert float(box.attrib["width"]) / width == pytest.approx(0.2, abs=1e-3)
    (median,) = [line for line in chart.iter("line") if line.attrib["stroke"] == "#d55e00"]
    assert value(median.attrib["x1"]) == pytest.approx(0.6, abs=1e-3)
    (whisker,) = [line for line in chart.iter("line") if line.attrib["stroke"] == "#566069"]
    assert [value(whisker.attrib[key]) for key in ("x1", "x2")] == pytest.approx([0.5, 0.8], abs=1e-3)  # 0 is outside
    points = {point.find("title").text: value(point.attrib["cx"]) for point in chart.iter("circle")}
    assert points == {
        f"case <{i}>: {v:.4f}": pytest.approx(v, abs=1e-3) for i, v in enumerate([0.0, 0.5, 0.6, 0.7, 0.8])
    }
    texts = [text.text for text in chart.iter("text")]
    assert "tumor & more" in texts and "no value" in texts
    assert not re.search(r"nan|inf", box_plot("Dice", {"liver": values}))
