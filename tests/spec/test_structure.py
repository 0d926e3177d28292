"""The schema, read off its annotations."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from resnet_builder.errors import SpecPath
from resnet_builder.spec.structure import homes, is_option, is_part, members, short_key


@pytest.mark.parametrize(
    "path",
    [
        ("model", "stem"),
        ("model", "init"),
        ("model", "stages", 3, "shortcut"),
        ("data", "dataset"),
        ("data", "preprocess", 0),
        ("data", "augment", 12),
        ("train", "optimizer"),
        ("train", "schedule"),
        ("train", "schedule", "warmup"),
        ("train", "loss"),
    ],
)
def test_parts_are_found(path: SpecPath) -> None:
    assert is_part(path)


@pytest.mark.parametrize(
    "path", [(), ("model",), ("model", "stages"), ("train", "ema"), ("data", "augment"), ("x",)]
)
def test_other_sections_are_no_parts(path: SpecPath) -> None:
    assert not is_part(path)


def test_scalars_stand_for_a_type_or_a_path() -> None:
    assert short_key(("model", "stem")) == "type"
    assert short_key(("model", "weights")) == "path"
    assert short_key(("train", "ema")) is None


def test_options_are_inside_registered_parts_only() -> None:
    assert is_option(("model", "block", "groups"))
    assert is_option(("data", "augment", 0, "range", "low"))
    assert not is_option(("model", "block"))
    assert not is_option(("train", "optimizer", "lr"))


def test_homes_are_where_a_key_can_stand() -> None:
    assert homes("lr") == (
        "train.optimizer.lr",
        "train.optimizer.aux.lr",
        "train.schedule.warmup.lr",
    )
    assert homes("stride") == ("model.stages[].stride",)
    assert homes("groups") == ()


def test_members_are_the_kinds_a_value_may_be_of() -> None:
    annotation = Literal["auto"] | Annotated[int, Field(ge=1)] | tuple[str, ...] | None
    word, number, texts = members(annotation)
    assert word.choices == ("auto",)
    assert number.kind is int
    assert [getattr(limit, "ge", None) for limit in number.limits] == [1]
    assert texts.is_list
    assert [member.kind for member in texts.item(5)] == [str]


def test_items_of_a_fixed_list_are_kept_apart() -> None:
    [pair] = members(tuple[int, str])
    assert [member.kind for member in pair.item(1)] == [str]
    assert pair.item(2) == ()
