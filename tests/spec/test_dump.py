"""Specs written as text and read again."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.spec.dump import commented_spec, copied_spec, dump_spec, relative_names
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
        "  - {channels: 16, blocks: 1, stride: 1}",
        "  - {channels: 32, blocks: 2, stride: 2}",
        "  norm: group_norm",
        "  activation: relu",
        "  attention: none",
    ]


def test_parts_are_in_one_line_and_comments_beside_them() -> None:
    text = commented_spec(
        {
            "name": "a",
            "model": {"block": {"type": "basic", "dropout": 0.1}, "stages": [{"channels": 4}]},
            "data": {"augment": ["horizontal_flip"]},
        },
        header=["A.", "", "B"],
        beside={"block": "the block", "stages": "one", "augment": ""},
        footer=["End."],
    )
    assert text == (
        "# A.\n#\n# B\n"
        "name: a\n"
        "model:\n"
        "  block: {type: basic, dropout: 0.1} # the block\n"
        "  stages: # one\n"
        "    - {channels: 4}\n"
        "data:\n"
        "  augment: [horizontal_flip]\n"
        "# End.\n"
    )


def test_long_lines_are_broken_and_long_comments_stand_above() -> None:
    part = {"type": "multistep", "milestones": [1000 * n for n in range(1, 17)]}
    text = commented_spec(
        {"train": {"schedule": part, "lr": 0.1}}, beside={"schedule": "s", "lr": "x" * 100}
    )
    assert text == (
        "train:\n"
        "  schedule: # s\n"
        "    type: multistep\n"
        f"    milestones: {part['milestones']}\n"
        f"  # {'x' * 100}\n"
        "  lr: 0.1\n"
    )


def copied(text: str) -> str:
    return copied_spec(text, origin="`a`", name="mine", source="a", target="mine.yaml")


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("# A.\nname: a # it\nb: [1]\n", "# A.\nname: mine # it\nb: [1]\n"),
        ("name: 'a'\n", "name: mine\n"),
        ("b: 1\n", "b: 1\n"),
        ("name:\nb: 1\n", "name:\nb: 1\n"),
        ("{b: 1, name: a}", "{b: 1, name: a}"),
        ("b: {name: a}\n", "b: {name: a}\n"),
    ],
)
def test_name_changes_and_nothing_else(text: str, copy: str) -> None:
    assert copied(text) == f"# Copied from `a`.\n{copy}"


def test_line_ends_of_a_copy_are_kept_and_its_name_is_text() -> None:
    copy = copied_spec("name: a\r\nb: 1", origin="`a`", name="007", source="a", target="c")
    assert copy == '# Copied from `a`.\r\nname: "007"\r\nb: 1'


def test_commands_in_comments_name_the_copy() -> None:
    text = "# Train: resnet-build train a\n#  or resnet-build summary a --depth, not train a.yaml\n"
    assert copied(f"{text}# resnet-build train a_b\nb: resnet-build train a\n") == (
        "# Copied from `a`.\n"
        "# Train: resnet-build train mine.yaml\n"
        "#  or resnet-build summary mine.yaml --depth, not train a.yaml\n"
        "# resnet-build train a_b\n"
        "b: resnet-build train a\n"
    )


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"extends": "resnet20", "plugins": ["lab.blocks"]}, []),
        ({"extends": "./a.yaml"}, ["./a.yaml"]),
        ({"extends": ["resnet20", "a.yml"], "plugins": ["b.py"]}, ["a.yml", "b.py"]),
        ({"model": {"weights": "w.safetensors"}}, ["w.safetensors"]),
        ({"model": {"weights": {"path": "w/x"}}}, ["w/x"]),
        ({"model": {"weights": "torchvision:ResNet18_Weights.IMAGENET1K_V1"}}, []),
        ({"extends": str(Path.cwd() / "a.yaml"), "model": None}, []),
        ({"data": {"dataset": {"type": "image_folder", "path": "pictures"}}}, []),
    ],
)
def test_names_that_count_from_the_folder_are_found(data: dict[str, Any], names: list[str]) -> None:
    assert relative_names(data) == names
