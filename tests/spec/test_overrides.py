"""``--set``: paths, values, and what is wrong with either."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.overrides import apply_override, parse_override
from resnet_builder.spec.plain import node_from_mapping, plain
from tests.spec.texts import draft


def after(data: dict[str, Any], *arguments: str) -> Any:
    document = node_from_mapping(data)
    root = document.root
    for argument in arguments:
        root = apply_override(root, parse_override(argument), main=document.source)
    return plain(root)


def refused(data: dict[str, Any], argument: str) -> Problem:
    with pytest.raises(SpecError) as raised:
        after(data, argument)
    [problem] = raised.value.errors
    assert (problem.file, problem.line) == ("<command line>:--set", None)
    assert problem.snippet == argument
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-4", 0.0001),
        ("true", True),
        ("text", "text"),
        ('"5"', "5"),
        ("''", ""),
        ("a=b", "a=b"),
        ("a#b", "a#b"),
        ("a # comment", "a"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{a: [1]}", {"a": [1]}),
        (" 5 ", 5),
    ],
)
def test_value_is_yaml_in_flow_style(text: str, value: object) -> None:
    assert after({}, f"data.x={text}") == {"data": {"x": value}}


def test_mappings_on_the_way_are_made() -> None:
    assert after({}, "a.b.c=1", "a.b.d=2") == {"a": {"b": {"c": 1, "d": 2}}}


@pytest.mark.parametrize("path", ["model.stages.1.blocks", "model.stages[1].blocks"])
def test_item_of_a_list_is_changed_in_place(path: str) -> None:
    data = {"model": {"stages": [{"blocks": 1}, {"blocks": 2, "stride": 2}]}}
    assert after(data, f"{path}=7") == {
        "model": {"stages": [{"blocks": 1}, {"blocks": 7, "stride": 2}]}
    }


def test_item_of_a_list_is_replaced_or_removed() -> None:
    data = {"plugins": ["a", "b", "c"]}
    assert after(data, "plugins.1=x") == {"plugins": ["a", "x", "c"]}
    assert after(data, "plugins.1=null") == {"plugins": ["a", "c"]}


def test_part_in_a_list_follows_the_rule_of_parts() -> None:
    data = {"data": {"augment": ["random_crop", {"type": "cutout", "size": 8}]}}
    assert after(data, "data.augment.0.padding=4", "data.augment.1={size: 4}") == {
        "data": {"augment": [{"type": "random_crop", "padding": 4}, {"type": "cutout", "size": 4}]}
    }


def test_value_is_merged_like_any_layer() -> None:
    data = {"train": {"steps": 10, "optimizer": {"type": "sgd", "lr": 1}}}
    assert after(data, "train={epochs: 1, optimizer: {lr: 2}}") == {
        "train": {"epochs": 1, "optimizer": {"type": "sgd", "lr": 2}}
    }


def test_key_is_digits_where_there_is_no_list() -> None:
    assert after({}, "a.0=x") == {"a": {"0": "x"}}


@pytest.mark.parametrize(
    ("argument", "column", "shown"),
    [
        ("model.stages.7.blocks=3", 14, "7"),
        ("model.stages.x=3", 14, "x"),
        ("model.stages[2]=3", 14, "2"),
    ],
)
def test_item_out_of_range_is_pointed_at_row26(argument: str, column: int, shown: str) -> None:
    problem = refused({"model": {"stages": [{}, {}]}}, argument)
    assert (problem.code, problem.path, problem.col) == ("out-of-range", "model.stages", column)
    assert problem.message == f"there is no item {shown}, only 2, counted from 0"
    assert problem.allowed == ("0", "1")


@pytest.mark.parametrize(
    "argument",
    ["", "a", "=1", "a b=1", "a..b=1", ".a=1", "a.=1", "a[x]=1", "a[1=2", "a\n=1", "[0]=1"],
)
def test_argument_of_another_form_is_refused(argument: str) -> None:
    with pytest.raises(SpecError, match=r"error\[yaml-syntax\]: must be path.to.key=value"):
        parse_override(argument)


@pytest.mark.parametrize("argument", ["a=", "a= ", "a=# nothing"])
def test_argument_without_a_value_is_refused(argument: str) -> None:
    assert "null takes the key away" in refused({}, argument).message


@pytest.mark.parametrize("argument", ["a=b: 1", "a=- 1"])
def test_block_style_is_refused(argument: str) -> None:
    with pytest.raises(SpecError, match=r"write a mapping as \{key: value\}"):
        parse_override(argument)


@pytest.mark.parametrize(
    ("argument", "code", "column"),
    [
        ("a=[1, 2", "yaml-syntax", 3),
        ("a=x: y: z", "yaml-syntax", 7),
        ("a='x", "yaml-syntax", 3),
        ("a=\t1", "yaml-syntax", 3),
        ("a=\x07", "yaml-syntax", 3),
        ("a=" + "[" * 40, "limit", 35),
        ("extends=x", "yaml-syntax", 1),
        (".".join("a" * 33) + "=1", "limit", 1),
    ],
)
def test_value_that_cannot_be_read_is_pointed_at(argument: str, code: str, column: int) -> None:
    problem = refused({}, argument)
    assert (problem.code, problem.col) == (code, column)


@pytest.mark.parametrize(
    ("argument", "code", "path", "column"),
    [
        ("run.compile=no", "yaml-ambiguous", "run.compile", 13),
        ("model.stages.0={blocks: 1, blocks: 2}", "duplicate-key", "model.stages[0].blocks", 28),
        ("name=!!str x", "yaml-tag", "name", 6),
        ("train.seed=&x 1", "yaml-alias", "train.seed", 12),
        ("train.seed=1.5", "wrong-type", "train.seed", 12),
        ("train.lr=1", "unknown-key", "train.lr", 7),
        ("model.stages.0.blocks=0", "out-of-range", "model.stages[0].blocks", 23),
    ],
)
def test_problem_points_into_the_argument(
    argument: str, code: str, path: str, column: int, tmp_path: Path
) -> None:
    found = draft(tmp_path, "train.keep_checkpoints=3", argument).problems
    assert [(one.code, one.path, one.col, one.snippet) for one in found] == [
        (code, path, column, argument)
    ]


def test_problem_shows_the_argument_with_a_caret(tmp_path: Path) -> None:
    """The form of the message."""
    [problem] = draft(tmp_path, "model.stages.9.blocks=3").problems
    assert str(problem) == (
        "<command line>:--set: error[out-of-range]: model.stages: there is no item 9, only 2, "
        "counted from 0\n"
        "      | model.stages.9.blocks=3\n"
        "      |              ^\n"
        "allowed: 0, 1"
    )


def test_required_key_taken_away_is_missed_in_the_argument(tmp_path: Path) -> None:
    [problem] = draft(tmp_path, "model.num_classes=null").problems
    assert (problem.code, problem.path) == ("missing-key", "model.num_classes")
    assert (problem.file, problem.col) == ("<command line>:--set", 7)
