"""Copies of specs."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.spec.copying import copied_spec, relative_names


def copied(text: str) -> str:
    return copied_spec(text, origin="`a`", name="mine", source="a", target="mine.yaml")


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("# A.\nname: a # it\nb: [1]\n", "# A.\nname: mine # it\nb: [1]\n"),
        ("{b: 1, name: 'a', c: 2}", "{b: 1, name: mine, c: 2}"),
        ("b: 1\n", "b: 1\n"),
        ("name:\nb: 1\n", "name: mine\nb: 1\n"),
        ("b: {name: a}\n", "b: {name: a}\n"),
    ],
)
def test_name_changes_and_nothing_else(text: str, copy: str) -> None:
    assert copied(text) == f"# Copied from `a`.\n{copy}"


def test_line_ends_and_byte_order_mark_are_kept() -> None:
    assert copied("\ufeffname: a\r\nb: 1") == "\ufeff# Copied from `a`.\r\nname: mine\r\nb: 1"


def test_name_that_is_no_text_is_quoted() -> None:
    assert copied_spec("name: a\n", origin="b", name="007", source="a", target="c").endswith(
        'name: "007"\n'
    )


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
