"""Charts of the report page: well-formed for any numbers, true to them, without overlaps."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from resnet_builder.reports.charts import (
    STYLE,
    Bar,
    Bin,
    Mark,
    Point,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    reliability_diagram,
    scatter_chart,
    standalone,
)
from resnet_builder.reports.scale import Axis, scale_of
from resnet_builder.reports.svg import text_width

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = math.nan, math.inf


def parse(chart: str) -> ElementTree.Element:
    """Parse a chart, and check what all charts promise."""
    image = ElementTree.fromstring(chart)
    assert (image.tag, image.get("role")) == (f"{SVG}svg", "img")
    assert image.findtext(f"{SVG}title")
    assert image.findtext(f"{SVG}desc")
    width, height = (float(number) for number in image.attrib["viewBox"].split()[2:])
    assert not re.search(r"nan|inf\b|None", chart.replace("NaN", ""))
    for text in image.iter(f"{SVG}text"):
        if float(text.attrib["x"]):  # turned names begin at 0
            assert 0 <= float(text.attrib["x"]) <= width
            assert 0 <= float(text.attrib["y"]) <= height
    return image


def texts(image: ElementTree.Element) -> list[str]:
    """Return what is written in a chart, tooltips left out."""
    return [
        (text.text or "")
        + "".join(f" {one.text}" if one.tag == f"{SVG}tspan" else one.tail or "" for one in text)
        for text in image.iter(f"{SVG}text")
    ]


def tooltips(image: ElementTree.Element) -> list[str]:
    """Return the tooltips of a chart."""
    return [title.text or "" for title in image.iter(f"{SVG}title")][1:]


@pytest.mark.parametrize(
    "values",
    [
        [], [0.25], [5.0, 5.0, 5.0], [NAN, NAN], [1.0, NAN, 2.0, INF, 3.0], [-INF, INF],
        [1e-300, 1e300], [-1e308, 1e308], [0.0, 0.0], [-1.0, 0.0, 1.0], [1e-7, 2e-7],
        [1e12, 1e12 + 1],
    ],
)  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers_give_a_chart(values: Sequence[float], log: bool) -> None:
    axis, places = Axis("loss", log=log), list(range(len(values)))
    parse(line_chart([Series("a & <b>", places, values, values, values)], title="<&>", y=axis))
    parse(line_chart([Series("", values, values)], title="loss", x=axis, y=axis))
    points = [Point("p", one, one, one, one, one, one) for one in values]
    parse(scatter_chart(points, title="points", x=axis, y=axis))
    parse(bar_chart([Bar("b", one, one, one) for one in values], title="bars"))


def test_line_chart_writes_names_at_the_ends_and_marks_with_their_numbers() -> None:
    epochs = np.arange(31)
    chart = line_chart(
        [
            Series("train", epochs, 60.0 - epochs, dashed=True),
            Series("test", epochs, 62.5 - epochs),
        ],
        title="Error",
        x=Axis("epoch"),
        y=Axis("top-1 error", unit="%"),
        marks=[Mark(15, "rate drop"), Mark(15.1, "resumed"), Mark(28, "best", 34.5)],
    )
    image = parse(chart)
    shown, told = texts(image), tooltips(image)
    assert shown[:2] == ["Error", "top-1 error"]
    assert {"30 %", "50 %", "70 %", "0", "10", "20", "30", "epoch", "train", "test", "best"} <= {
        *shown
    }
    assert "rate drop" in shown
    assert "resumed" not in shown, "it has no room beside the other text"
    assert {"test 32.50 % at 30", "best: 34.50 % at 28", "resumed at 15.1"} <= {*told}
    assert ElementTree.fromstring(standalone(chart)).findtext(f"{SVG}style", "").startswith(STYLE)


def test_last_tick_is_inside_the_image() -> None:
    x = Axis("images", limits=(0, 100), unit="%")
    image = parse(line_chart([Series("", [0, 100], [0, 1])], title="coverage", x=x))
    (last,) = (one for one in image.iter(f"{SVG}text") if one.text == "100 %")
    right = float(image.attrib["viewBox"].split()[2])
    assert float(last.attrib["x"]) + 1.15 * text_width("100 %", 12) / 2 <= right


@pytest.mark.parametrize("number", [2, 12, 30])
def test_names_of_lines_do_not_overlap(number: int) -> None:
    series = [Series(f"run {one} " + "x" * 60, [0, 1], [1.0, 1.0]) for one in range(number)]
    image = parse(line_chart(series, title="equal"))
    names = [
        text for text in image.iter(f"{SVG}text") if (text[:] and "run" in (text[0].text or ""))
    ]
    assert len(names) == number
    assert all("…" in (text[0].tail or "") for text in names)
    places = sorted((float(text.attrib["x"]), float(text.attrib["y"])) for text in names)
    for (x, y), (next_x, next_y) in pairwise(places):
        assert next_x - x > 150 or next_y - y >= 15


def test_many_points_are_thinned_and_the_extremes_stay() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[54_321], values[12_345] = 40, -40
    chart = line_chart([Series("loss", np.arange(100_000), values)], title="loss")
    assert len(chart) < 60_000
    line = parse(chart).find(f".//{SVG}path[@class='series dense']")
    assert line is not None
    heights = [float(pair.split()[1]) for pair in line.attrib["d"][1:].split("L")]
    assert (min(heights), max(heights)) == (52, 248)  # the ends of the scale


def test_heat_map_has_each_number_that_is_not_zero() -> None:
    image = parse(heat_map([[8, 2], [0, 5]], ["cat", "dog"], title="Confusion"))
    assert tooltips(image) == [
        "cat, predicted cat: 8 (80.00 %)",
        "cat, predicted dog: 2 (20.00 %)",
        "dog, predicted dog: 5 (100.00 %)",
    ]
    assert texts(image)[2:5] == ["8", "2", "5"]
    large = parse(heat_map(np.eye(100), [f"class {one}" for one in range(100)], title="large"))
    assert len(tooltips(large)) >= 100
    parse(heat_map(np.zeros((0, 0)), [], title="none"))


def test_bars_and_bins_tell_their_numbers() -> None:
    bars = [Bar("pad", 91.25, 91.0, 91.5, "n = 3"), Bar("none", None), Bar("broken", NAN)]
    image = parse(bar_chart(bars, title="Shortcuts", x=Axis("top-1", unit="%")))
    assert {"91.25 % n = 3", "no value"} <= {*texts(image)}
    assert len(image.findall(f".//{SVG}rect")) == 1
    dots = parse(bar_chart(bars, title="Shortcuts", x=Axis("top-1", limits=(90, 100))))
    assert len(dots.findall(f".//{SVG}circle")) == 1, "a bar that does not begin at 0 would mislead"
    bins = [Bin(0, 0.5, 0.4, 0.3, 10), Bin(0.5, 1, 0.9, 0.8, 30), Bin(0.2, 0.3, 0, 0, 0)]
    told = tooltips(parse(reliability_diagram(bins, title="Reliability")))
    assert told[0] == (
        "confidence 0 to 0.5: 10 images (25.00 %), mean confidence 0.400, accuracy 0.300"
    )
    assert len(told) == 6
    parse(reliability_diagram([], title="none"))


@pytest.mark.parametrize(("accuracy", "color"), [(0.3, 2), (0.9, 1)])
def test_gap_of_a_bin_lies_above_its_bar_in_a_color_of_its_direction(
    accuracy: float, color: int
) -> None:
    image = parse(reliability_diagram([Bin(0.5, 1, 0.7, accuracy, 30)], title="Reliability"))
    _, bar, gap = image.iter(f"{SVG}rect")
    assert gap.attrib["class"] == "gap"
    assert f"--series-{color})" in gap.attrib["style"]
    assert float(gap.attrib["y"]) + float(gap.attrib["height"]) == pytest.approx(
        float(bar.attrib["y"]), abs=0.2
    )


def test_name_of_a_point_at_the_right_edge_stands_beside_its_error_bars() -> None:
    points = [
        Point("pad", 12, 98, 11, 13, 97, 99),
        Point("shortcut projection", 23, 98, 22, 24, 97, 99),
    ]
    image = parse(scatter_chart(points, title="accuracy by time"))
    assert {"pad", "shortcut projection"} <= {*texts(image)}


@pytest.mark.parametrize(
    ("values", "log", "wanted"),
    [
        ([0, 100], False, ["0", "20", "40", "60", "80", "100"]),
        ([0, 64_000], False, ["0", "10k", "20k", "30k", "40k", "50k", "60k"]),
        ([0, 3e6], False, ["0", "0.5M", "1M", "1.5M", "2M", "2.5M", "3M"]),
        ([0.88, 0.884], False, ["0.880", "0.881", "0.882", "0.883", "0.884"]),
        ([0, 2], False, ["0", "1", "2"]),
        ([0, 2.5], False, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        ([1e-5, 0.1], True, ["1e-5", "0.0001", "0.001", "0.01", "0.1"]),
        ([0.3, 4.0], True, ["0.5", "1", "2"]),
        ([2.0, 3.0], True, ["2.0", "2.2", "2.4", "2.6", "2.8", "3.0"]),
    ],
)
def test_ticks_are_round(values: list[float], log: bool, wanted: list[str]) -> None:
    scale = scale_of(Axis(log=log), [values], 0, 300)
    ticks = scale.ticks()
    assert [scale.tick_text(tick, ticks) for tick in ticks] == wanted
    assert scale(values[0]) == pytest.approx(0)
    assert scale(values[1]) == pytest.approx(300)
