"""Plain Python data as a source of specs."""

from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.plain import node_from_mapping, plain


def refused(value: Any) -> Problem:
    with pytest.raises(SpecError) as raised:
        node_from_mapping({"a": [0, value]})
    [problem] = raised.value.errors
    assert (problem.file, problem.line, problem.snippet) == ("<mapping>", None, None)
    return problem


def test_plain_data_comes_back_equal() -> None:
    data = {"a": [1, 2.5, True, None, "x"], "b": {"c": [], "d": {}}}
    assert plain(node_from_mapping(data).root) == data


def test_other_mappings_and_tuples_are_taken() -> None:
    data = MappingProxyType({"a": OrderedDict(b=(1, 2))})
    assert plain(node_from_mapping(data).root) == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ({1, 2}, "wrong-type", "must be plain data, not set"),
        (b"x", "wrong-type", "must be plain data, not bytes"),
        (2**63, "limit", "whole numbers have at most 64 bits"),
        ("x" * 4097, "limit", "4097 characters are more than 4096"),
        ("\udc80", "yaml-syntax", "half of a surrogate pair is no character"),
    ],
)
def test_what_yaml_has_no_word_for_is_refused(value: object, code: str, message: str) -> None:
    problem = refused(value)
    assert (problem.code, problem.path, problem.message) == (code, "a[1]", message)


def test_keys_must_be_text() -> None:
    assert refused({1: 2}).message == "a key must be text, not 1"
    assert refused({"x" * 129: 2}).message == "129 characters are more than 128"


def test_data_that_holds_itself_ends() -> None:
    data: dict[str, Any] = {}
    data["again"] = data
    with pytest.raises(SpecError, match="nested deeper than 32"):
        node_from_mapping(data)


def test_size_is_limited() -> None:
    with pytest.raises(SpecError, match="more than 20000 values"):
        node_from_mapping({"a": [0] * 20_000})
