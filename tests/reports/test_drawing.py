"""Drawings of networks: what they show is what the network is."""

import os
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS
from resnet_builder.blocks.layers import conv3x3
from resnet_builder.builder import build_on_meta
from resnet_builder.parts import resolve
from resnet_builder.reports.drawing import ASPECT, draw_svg
from resnet_builder.reports.mermaid import draw_mermaid
from resnet_builder.spec.bundled import bundled_names
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.summary import Summary, summarize
from tests.networks import cifar_spec

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "resnet32.svg"
SVG = "{http://www.w3.org/2000/svg}"

QUICK = {"plain20", "resnet20", "resnet26d"}
CI = {"ecaresnet50d", "kj20", "resnet50", "resnetv2_50", "resnext29_8x64d", "seresnet50", "wrn16_8"}


def names() -> list[object]:
    """Return the bundled specs: a few by default, one of each family in CI, the others slow."""
    marked = {name: [] if name in QUICK else [pytest.mark.slow] for name in bundled_names()}
    marked |= {name: [pytest.mark.ci] for name in CI}
    return [pytest.param(name, marks=marks) for name, marks in marked.items()]


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def classes(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in one.get("class", "").split()]


def arcs(root: ElementTree.Element) -> dict[str, bool]:
    """Return whether the arc of each block is dotted."""
    found = classes(root, "arc")
    dotted = {one.attrib["data-name"]: "dotted" in one.attrib["class"] for one in found}
    assert len(dotted) == len(found)
    return dotted


def expected_arcs(spec: Spec) -> dict[str, bool]:
    """Return whether each block with a shortcut changes the shape, from the network itself."""
    network = build_on_meta(resolve(spec).model)
    return {
        f"layer{number}.{index}": not isinstance(block.downsample, nn.Identity)
        for number, stage in enumerate(network.stages, 1)
        for index, block in enumerate(stage)
        if block.downsample is not None
    }


@pytest.mark.parametrize("name", names())
def test_drawing_is_the_network(name: str) -> None:
    spec = load_spec(name)
    found = summarize(spec)
    full, folded = parse(draw_svg(found, full=True)), parse(draw_svg(found))

    assert len(classes(full, "counted")) == found.depth
    wanted = expected_arcs(spec)
    assert arcs(full) == wanted
    shown = arcs(folded)
    assert shown.items() <= wanted.items()
    stages = {(block.partition(".")[0], dotted) for block, dotted in wanted.items()}
    assert {(block.partition(".")[0], dotted) for block, dotted in shown.items()} == stages

    numbers = [text for text in texts(folded) if re.fullmatch(r"[\d,]+", text)]
    cells = [(row.parameters, row.macs, row.depth) for row in found.rows]
    cells.append((found.parameters, found.macs, found.depth))
    counts = [f"{cell:,}" for row in cells for cell in row]
    counts.insert(-6, str(found.rows[-1].output[0]))  # size of the head's output
    assert numbers == counts
    for row in found.rows:
        assert f"{row.parameters:,} parameters" in texts(full)
        assert f"{row.macs:,} MACs" in texts(full)


@pytest.mark.ci
def test_resnet152_fits_a_page() -> None:
    found = summarize(load_spec("resnet152"))
    for full in (False, True):
        root = parse(draw_svg(found, full=full))
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert height / width <= ASPECT
        assert width <= 1100  # letters of 12 pixels have at least 6.5 points on A4


@pytest.fixture(scope="module")
def resnet32() -> Summary:
    return summarize(load_spec("resnet32"))


def test_picture_of_the_docs_is_what_the_program_draws(resnet32: Summary) -> None:
    """``REGENERATE_GOLDEN=1`` draws it again."""
    drawn = draw_svg(resnet32)
    if os.environ.get("REGENERATE_GOLDEN"):
        PICTURE.write_text(drawn, encoding="utf-8")
    assert PICTURE.read_text(encoding="utf-8") == drawn


def test_resnet32_is_the_diagram_of_the_tutorials(resnet32: Summary) -> None:
    shown = texts(parse(draw_svg(resnet32)))
    assert "images of 3 x 32 x 32, depth 1 + 10 + 10 + 10 + 1 = 32" in shown
    assert [text for text in shown if re.fullmatch(r"\d+ x", text)] == ["5 x", "4 x", "4 x"]
    assert [text for text in shown if "conv" in text] == [
        "3x3 conv, 16 · batch norm · ReLU",  # stem
        *("3x3 conv, 16 · batch norm · ReLU", "3x3 conv, 16 · batch norm"),
        *("3x3 conv, 32, /2 · batch norm · ReLU", "3x3 conv, 32 · batch norm"),
        *("3x3 conv, 32 · batch norm · ReLU", "3x3 conv, 32 · batch norm"),
        *("3x3 conv, 64, /2 · batch norm · ReLU", "3x3 conv, 64 · batch norm"),
        *("3x3 conv, 64 · batch norm · ReLU", "3x3 conv, 64 · batch norm"),
    ]
    assert shown.count("pad") == 2
    assert shown.count("add · ReLU") == 5


def test_mermaid_has_a_dotted_link_for_each_shortcut_that_changes_the_shape(
    resnet32: Summary,
) -> None:
    folded, full = draw_mermaid(resnet32), draw_mermaid(resnet32, full=True)
    assert "\nflowchart TB\n" in folded
    assert folded.count('-.->|"pad"|') == full.count('-.->|"pad"|') == 2
    assert folded.count("_sum((") == 5
    assert full.count("_sum((") == 15
    assert '["5 x basic<br>3x3 conv, 16, batch norm, ReLU<br>3x3 conv, 16, batch norm"]' in folded
    assert "464,154 parameters, 68,862,592 MACs" in folded
    assert 'subgraph layer2["layer2: 32 x 16 x 16"]' in folded


def test_names_from_files_cannot_change_a_drawing(resnet32: Summary) -> None:
    bad = '"]<script>&\n\x1b'
    rows = tuple(replace(row, kind=f"5 x {bad}") for row in resnet32.rows)
    found = replace(resnet32, name=bad, rows=rows)
    root = parse(draw_svg(found))
    assert '"]<script>&\\x0a\\x1b' in texts(root)
    assert not [one for one in root.iter() if one.tag.endswith("script")]
    mermaid = draw_mermaid(found)
    assert "<script" not in mermaid
    assert all(line.count('"') % 2 == 0 for line in mermaid.splitlines())


@pytest.mark.parametrize(
    ("shortcut", "labels"),
    [
        ("pad", ["identity", "pad"]),
        ("projection", ["identity", "projection"]),
        ("projection_all", ["projection_all", "projection_all"]),
        ("none", [None, None]),
    ],
)
def test_blocks_name_their_shortcuts(shortcut: str, labels: list[str | None]) -> None:
    spec = cifar_spec(1, widths=(8, 16), shortcut=shortcut)
    found = summarize(spec)
    assert [block.shortcut for block in found.blocks] == labels
    dotted = {"layer1.0": False, "layer2.0": True} if shortcut != "none" else {}
    assert arcs(parse(draw_svg(found))) == dotted


def test_projection_of_a_pre_activated_block_begins_behind_its_first_activation() -> None:
    spec = cifar_spec(
        2,
        widths=(8, 16),
        block="preact_basic",
        shortcut="projection",
        stem={"type": "conv3x3", "channels": 8, "bare": True},
        head="preact_linear",
    )
    found = summarize(spec)
    path = ("bn1", "relu", "conv1", "bn2", "relu", "conv2", "+")
    assert [block.path for block in found.blocks] == [path] * 4
    assert [block.shortcut_from for block in found.blocks] == [0, 0, 2, 0]
    shown = texts(parse(draw_svg(found)))
    assert "batch norm · ReLU" in shown
    assert "3x3 conv, 16, /2" in shown


def test_attention_is_one_step_and_no_output() -> None:
    found = summarize(cifar_spec(1, widths=(8, 16), attention={"type": "se", "reduction": 4}))
    assert found.blocks[0].path == ("conv1", "bn1", "relu", "conv2", "bn2", "se", "+", "relu")
    assert [row.output for row in found.rows[1:3]] == [(8, 32, 32), (16, 16, 16)]
    assert [row.receptive_field for row in found.rows] == [3, 7, 13, None]


class Own(nn.Module):
    """Block that keeps its shortcut under a name of its own, and activates by functions."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: object) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = conv3x3(in_channels, channels, stride=stride)
        self.wide = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        y = self.conv(x).relu() * 0.5
        return y + x if y.shape == x.shape else y


class Bare(nn.Module):
    """Block without layers."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: object) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        return x + x


def test_blocks_of_plugins_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    BLOCKS.register("own")(Own)
    BLOCKS.register("bare")(Bare)

    own = summarize(cifar_spec(1, widths=(8, 16), block="own"))
    assert [block.path for block in own.blocks] == [
        ("conv", "ReLU", "multiply", "+"),
        ("conv", "ReLU", "multiply"),
    ]
    assert "3x3 conv, 16, /2 · ReLU · multiply" in texts(parse(draw_svg(own)))
    assert len(classes(parse(draw_svg(own, full=True)), "counted")) == own.depth == 4
    assert arcs(parse(draw_svg(own, full=True))) == {"layer1.0": False}

    bare = summarize(cifar_spec(1, widths=(8,), block="bare"))
    assert "bare" in texts(parse(draw_svg(bare, full=True)))
    assert arcs(parse(draw_svg(bare))) == {"layer1.0": False}
    assert "layer1_0_sum" in draw_mermaid(bare)
