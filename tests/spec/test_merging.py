"""One layer over another, each rule by itself."""

from typing import Any

import pytest

from resnet_builder.spec.merging import merge
from resnet_builder.spec.plain import node_from_mapping, plain
from resnet_builder.spec.source import Source
from resnet_builder.spec.tree import parse_yaml


def merged(below: dict[str, Any], above: dict[str, Any]) -> Any:
    low, high = node_from_mapping(below), node_from_mapping(above)
    return plain(merge(low.root, high.root, main=low.source))


def test_mappings_are_merged_deeply() -> None:
    below = {"run": {"device": "cpu", "threads": 1}, "data": {"validation": 5}}
    assert merged(below, {"run": {"threads": 2}}) == {
        "run": {"device": "cpu", "threads": 2},
        "data": {"validation": 5},
    }


def test_lists_are_replaced_whole() -> None:
    assert merged({"plugins": ["a", "b"]}, {"plugins": ["c"]}) == {"plugins": ["c"]}


def test_mapping_replaces_a_scalar_and_a_scalar_a_mapping() -> None:
    assert merged({"data": 5}, {"data": {"validation": 1}}) == {"data": {"validation": 1}}
    assert merged({"data": {"validation": 1}}, {"data": 5}) == {"data": 5}


@pytest.mark.parametrize("above", ["conv7x7_maxpool", {"type": "deep"}, {"type": "conv3x3"}])
def test_name_or_type_replaces_a_part_whole(above: object) -> None:
    below = {"model": {"stem": {"type": "conv3x3", "channels": 16}}}
    assert merged(below, {"model": {"stem": above}}) == {"model": {"stem": above}}


def test_mapping_without_type_changes_options_of_the_part_below() -> None:
    below = {"model": {"stem": {"type": "conv3x3", "channels": 16}}}
    assert merged(below, {"model": {"stem": {"channels": 8}}}) == {
        "model": {"stem": {"type": "conv3x3", "channels": 8}}
    }


def test_mapping_without_type_gives_options_to_a_name() -> None:
    assert merged({"train": {"optimizer": "sgd"}}, {"train": {"optimizer": {"lr": 0.1}}}) == {
        "train": {"optimizer": {"type": "sgd", "lr": 0.1}}
    }


def test_mapping_gives_options_to_a_path() -> None:
    below: dict[str, Any] = {"model": {"weights": "a.pth"}}
    with_option = {"model": {"weights": {"path": "a.pth", "new_head": True}}}
    assert merged(below, {"model": {"weights": {"new_head": True}}}) == with_option
    assert merged(with_option, {"model": {"weights": {"path": "b.pth"}}}) == {
        "model": {"weights": {"path": "b.pth", "new_head": True}}
    }
    assert merged(with_option, below) == below


@pytest.mark.parametrize(
    ("below", "above", "wanted"),
    [
        ({"steps": 9}, {"epochs": 2}, {"epochs": 2}),
        ({"epochs": 9}, {"steps": 2}, {"steps": 2}),
        ({"steps": 9}, {"steps": 2}, {"steps": 2}),
        ({"steps": 9}, {"steps": 1, "epochs": 2}, {"steps": 1, "epochs": 2}),
        ({"steps": 9}, {"epochs": None}, {"steps": 9, "epochs": None}),
        ({"steps": 9}, {"seed": 1}, {"steps": 9, "seed": 1}),
    ],
)
def test_one_unit_of_a_length_takes_away_the_other(
    below: dict[str, Any], above: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert merged({"train": below}, {"train": above}) == {"train": wanted}


def test_seconds_are_a_unit_too() -> None:
    below = {"train": {"checkpoint_every": {"seconds": 5}}}
    above = {"train": {"checkpoint_every": {"steps": 7}}}
    assert merged(below, above) == above


def test_units_elsewhere_are_names_like_any_other() -> None:
    below = {"data": {"dataset": {"type": "mine", "steps": 1}}}
    assert merged(below, {"data": {"dataset": {"epochs": 2}}}) == {
        "data": {"dataset": {"type": "mine", "steps": 1, "epochs": 2}}
    }


def test_null_takes_away() -> None:
    assert merged({"train": {"seed": 1}}, {"train": {"seed": None}}) == {"train": {"seed": None}}
    assert merged({"data": {"validation": 1}}, {"data": None}) == {"data": None}


def test_null_takes_an_option_away_but_may_be_its_value() -> None:
    below = {"model": {"head": {"type": "linear", "dropout": 0.5}}}
    assert merged(below, {"model": {"head": {"dropout": None}}}) == {
        "model": {"head": {"type": "linear"}}
    }
    assert merged(below, {"model": {"head": {"hidden": None}}}) == {
        "model": {"head": {"type": "linear", "dropout": 0.5, "hidden": None}}
    }


def test_inputs_are_left_as_they_were() -> None:
    low, high = node_from_mapping({"run": {"threads": 1}}), node_from_mapping({"run": {}})
    merge(low.root, high.root, main=low.source)
    assert plain(low.root) == {"run": {"threads": 1}}


def test_mapping_of_two_layers_stands_where_the_spec_has_it() -> None:
    low = parse_yaml(Source("low", "\nrun: {threads: 1}")).root
    high = parse_yaml(Source("high", "\n\nrun: {device: cpu}")).root
    for main in (low.place.source, high.place.source):
        root = merge(low, high, main=main)
        assert isinstance(root.value, dict)
        assert root.value["run"].place.source is main
        assert isinstance(run := root.value["run"].value, dict)
        assert [run[key].place.source.name for key in ("threads", "device")] == ["low", "high"]
