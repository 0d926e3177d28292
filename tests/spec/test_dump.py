"""Specs written as text and read again."""

import pytest

from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec_text
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part
from tests.spec.texts import FULL, MINIMAL

ODD = [
    "no", "Off", "yes", "true", "null", "~", "", " ", " a", "a ", "010", "-1", "1e4", "1e-4",
    "1_000", "0o17", "0x1f", ".5", "1.", ".inf", ".nan", "12:30:45", "16:9", "2020-01-01", "=",
    "<<", "a: b", "a:", ":a", "- a", "-", "#a", "a #b", "a\nb", "a\n", "\n", "\ta", "a\tb", "'",
    '"', "'a'", '"a"', "\\", "a\\nb", "&a", "*a", "!a", "!!int 1", "%a", "@a", "`a`", "?", "? a",
    "|", ">", "[a]", "{a}", "a,b", "[", "]", "{", "}", "---", "...", "\x07", "\x1b[2J", "\x85",
    "\u2028", "\ufeff", "\u200b", "\u202e", "\xe9", "\u4e2d\u6587", "\U0001f600", "x" * 4000,
    "word " * 60, "9" * 400,
]  # fmt: skip


def with_options(**options: object) -> Spec:
    spec = load_spec_text(FULL)
    block = Part.model_validate({"type": "basic", **options})
    return spec.model_copy(update={"model": spec.model.model_copy(update={"block": block})})


@pytest.mark.parametrize("text", [MINIMAL + "name: x\n", FULL])
def test_spec_comes_back_equal(text: str) -> None:
    spec = load_spec_text(text)
    assert load_spec_text(dump_spec(spec)) == spec
    assert dump_spec(load_spec_text(dump_spec(spec))) == dump_spec(spec)


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_text_comes_back_as_text(text: str) -> None:
    spec = with_options(option=text, nested={"list": [text]}, **{text[:100] or "x": 1})
    assert load_spec_text(dump_spec(spec)) == spec


@pytest.mark.parametrize(
    "value",
    [0.1, 1e-4, 1e-7, 1e22, 1.0, -0.0, 5e-324, 1.7976931348623157e308, 2**63 - 1, True, None, 0],
)
def test_value_comes_back_as_it_was(value: object) -> None:
    spec = with_options(option=value)
    loaded = load_spec_text(dump_spec(spec))
    assert loaded == spec
    found = loaded.model.block.options["option"]
    assert (type(found), repr(found)) == (type(value), repr(value))


def test_text_is_what_a_person_would_write() -> None:
    assert dump_spec(load_spec_text(FULL)).splitlines()[:14] == [
        "version: 1",
        "name: full",
        "plugins: []",
        "model:",
        "  num_classes: 10",
        "  stem: {type: conv3x3, channels: 16}",
        "  block: basic",
        "  shortcut: {type: pad, position: end}",
        "  stages:",
        "  - {channels: 16, blocks: 1, stride: 1, dilation: 1}",
        "  - {channels: 32, blocks: 2, stride: 2, dilation: 1}",
        "  norm: group_norm",
        "  activation: relu",
        "  attention: none",
    ]
