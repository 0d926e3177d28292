"""YAML sources: files, limits, the meaning of plain words, and positions."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_builder.errors import SpecError
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.yaml_source import (
    AmbiguousError,
    Document,
    Node,
    Source,
    document_of,
    parse_yaml,
    plain,
    read_yaml,
    resolve,
)
from tests.spec.texts import FULL, write

X: Any = [1, {"b": 2}]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + FULL.encode(), id="bom"),
        pytest.param(FULL.replace("\n", "\r\n").encode(), id="crlf"),
        pytest.param(FULL.replace("\n", "\r").encode(), id="cr"),
        pytest.param(FULL.rstrip("\n").encode(), id="no-final-newline"),
        pytest.param(b"\xef\xbb\xbf%YAML 1.2\r\n---\r\n" + FULL.encode(), id="all"),
    ],
)
def test_spec_is_the_same_in_every_accepted_encoding(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_bytes(data)
    assert load_spec(path) == load_spec_text(FULL)
    assert plain(read_yaml(path).root) == plain(read_yaml(write(tmp_path, FULL)).root)


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        ("name: x".encode("utf-16"), (1, 1), "byte 0xFF is not UTF-8"),
        ("name: x".encode("utf-16-be"), (1, 1), "is the file UTF-16?"),
        (b"a: 1\nb: caf\xe9", (2, 7), "byte 0xE9 is not UTF-8"),
        (b"\xef\xbb\xbfa: 1\r\nb\xe9", (2, 2), "byte 0xE9 is not UTF-8"),
        (b"a: 1\r\rb: \x07", (3, 4), "U+0007 is not allowed"),
        ("a: \u2028".encode(), (1, 4), "U+2028 is not allowed"),
        ("a: \x85".encode(), (1, 4), "U+0085 is not allowed"),
        (b"a: \xed\xa0\x80", (1, 4), "byte 0xED is not"),
        (b'a: "\\ud800"', (1, 4), "half of a surrogate"),
        (b'"\\udfff": 1', (1, 1), "half of a surrogate"),
    ],
    ids=ascii,
)
def test_other_bytes_are_refused_where_they_stand(
    data: bytes, place: tuple[int, int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(data)
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    [problem] = [one for one in raised.value.errors if one.code == "yaml-syntax"]
    assert (problem.line, problem.col) == place
    assert message in problem.message


MEANINGS = {
    **{
        "1e-4": 1e-4,
        "1e4": 1e4,
        "1.5e4": 1.5e4,
        "1E+3": 1e3,
        ".5": 0.5,
        "1.": 1.0,
        "1e400": math.inf,
    },
    **{"-1": -1, "+12": 12, "0": 0, "-0.0": -0.0, "0o17": 15, "0xfF": 255, "-.inf": -math.inf},
    **{"true": True, "FALSE": False, "null": None, "~": None, "": None},
}
TEXTS = [
    *("190:20:30", "16:9", "2020-01-01", "2020-13-45", "0b_", "0b11", "tRUE", "y", "=", "${HOME}"),
    *("~/data", "{{ x }}", "%(x)s", "1_000a", "_1", "0x", "-0x1", "1e", ".", "\u0661"),
]


@pytest.mark.parametrize(("text", "value"), [*MEANINGS.items(), *((t, t) for t in TEXTS)])
def test_plain_word_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "value", "spelling"),
    [
        ("no", False, "false"),
        ("Off", False, "false"),
        ("YES", True, "true"),
        ("on", True, "true"),
        ("010", 10, "10"),
        ("-007", -7, "-7"),
        ("+08", 8, "8"),
        ("00", 0, "0"),
        ("1_000", 1000, "1000"),
        ("1_0.5e1", 105.0, "10.5e1"),
    ],
)
def test_ambiguous_word_is_refused_with_its_spelling(
    text: str, value: object, spelling: str
) -> None:
    with pytest.raises(AmbiguousError, match=f"write {spelling}") as raised:
        resolve(text)
    assert (raised.value.value, raised.value.spelling) == (value, spelling)


def read(text: str) -> Document:
    return parse_yaml(Source("text", text))


def places(node: Node, name: str = "") -> dict[str, tuple[int | None, ...]]:
    """Return the line and column of every value, and of its key if it has one."""
    place, key = node.place, node.key_place
    found = {name: (place.line, place.column, *((key.line, key.column) if key else ()))}
    children = node.value.items() if isinstance(node.value, dict) else ()
    for child, inside in children:
        found |= places(inside, f"{name}.{child}")
    for index, inside in enumerate(node.value if isinstance(node.value, list) else ()):
        found |= places(inside, f"{name}[{index}]")
    return found


def test_places_are_those_of_the_text() -> None:
    text = "# comment\na: 1\nb:\n  c: x\n  d:\n    - 5\ne: {f: [1, {g: 2}], \U0001f600: 3}\n"
    assert places(read(text).root) == {
        "": (2, 1),
        ".a": (2, 4, 2, 1),
        ".b": (4, 3, 3, 1),
        ".b.c": (4, 6, 4, 3),
        ".b.d": (6, 5, 5, 3),
        ".b.d[0]": (6, 7),
        ".e": (7, 4, 7, 1),
        ".e.f": (7, 8, 7, 5),
        ".e.f[0]": (7, 9),
        ".e.f[1]": (7, 12),
        ".e.f[1].g": (7, 16, 7, 13),
        ".e.\U0001f600": (7, 24, 7, 21),
    }


def test_what_can_be_read_on_from_is_noted_with_what_was_meant() -> None:
    document = read("a: no\nb: 010\nb: 3\nc: !!int 7\nd: *x\n1: 2\n<<: 3\n")
    assert plain(document.root) == {"a": False, "b": 10, "c": 7, "d": None}
    assert [(problem.code, problem.path, problem.line) for problem in document.problems] == [
        ("yaml-ambiguous", "a", 1),
        ("yaml-ambiguous", "b", 2),
        ("duplicate-key", "b", 3),
        ("yaml-tag", "c", 4),
        ("yaml-alias", "d", 5),
        ("wrong-type", "1", 6),
        ("yaml-alias", "<<", 7),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: &x [1, {b: 2}]\nc: *x\nd: [*x]", {"a": X, "c": X, "d": [X]}),
        ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("a: &x {k: 1, l: 1}\nb: {l: 2, <<: *x}", {"a": {"k": 1, "l": 1}, "b": {"k": 1, "l": 2}}),
        (
            "a: &x {k: 1}\nb: &y {k: 2, l: 2}\nc: {<<: [*x, *y]}",
            {"a": {"k": 1}, "b": {"k": 2, "l": 2}, "c": {"k": 1, "l": 2}},
        ),
        ("a: {<<: {k: &x 1}, l: *x}", {"a": {"k": 1, "l": 1}}),
        ('a: {"<<": 1}', {"a": {"<<": 1}}),
    ],
)
def test_aliases_and_merge_keys_are_read_as_by_pyyaml(text: str, wanted: object) -> None:
    document = read(text)
    assert document.problems == ()
    assert plain(document.root) == wanted
    if "'<<'" not in repr(wanted) and text.count("&x") == 1:  # PyYAML refuses these
        assert yaml.safe_load(text) == wanted


def test_value_of_an_alias_is_where_its_anchor_stands() -> None:
    root = read("a: &x\n  k: 1\nb:\n  <<: *x\n  l: 2\n").root.value
    assert isinstance(root, dict)
    merged = root["b"].value
    assert isinstance(merged, dict)
    assert {key: node.place.line for key, node in merged.items()} == {"k": 2, "l": 5}


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("a: *x", "a", "no `&x` stands before `*x`; quote text that begins with `*`"),
        ("a: &x [*x]", "a[0]", "`*x` stands inside what `&x` names"),
        ("a: &x {b: {<<: *x}}", "a.b.<<", "`*x` stands inside what `&x` names"),
        ("a: &x 1\nb: {<<: *x}", "b.<<", "`<<` takes a mapping, or a list of them, "),
        ("a: {<<: }", "a.<<", "`<<` takes a mapping, or a list of them, "),
        ("a: {<<: [{k: 1}, 2]}", "a.<<", "`<<` takes a mapping, or a list of them, "),
    ],
)
def test_wrong_alias_is_named(text: str, path: str, message: str) -> None:
    [problem] = read(text).problems
    assert (problem.code, problem.path) == ("yaml-alias", path)
    assert problem.message.startswith(message)


def test_integers_have_64_bits() -> None:
    assert read(f"a: {2**63 - 1}\nb: {-(2**63)}\nc: 0x{'f' * 15}").problems == ()
    for text in (f"{2**63}", f"0x{'f' * 4000}", "0o" + "7" * 4000, "9" * 4000):
        [problem] = read(f"a: {text}").problems
        assert (problem.code, problem.path, problem.col) == ("limit", "a", 4)


def nested(outer: int, inner: int) -> str:
    """Text of an alias of ``inner`` lists within ``outer`` lists, in a mapping."""
    return f"a: &x {'[' * inner}{']' * inner}\nb: {'[' * outer}*x{']' * outer}"


def repeated(count: int) -> str:
    """Text whose aliases stand for a hundred values and their list each."""
    return f"a: &x [{'0, ' * 99}0]\nb: [{', '.join(['*x'] * (count - 1))}]"


@pytest.mark.parametrize(
    ("most", "over", "message"),
    [
        ("[" * 32 + "]" * 32, "[" * 33, "nested deeper than 32"),
        ("{a: " * 32 + "}" * 32, "{a: " * 33, "nested deeper than 32"),
        ("[" + "0," * 19_999 + "]", "[" + "0," * 20_000 + "]", "more than 20000 values"),
        ("a: " + "x" * 4_096, "a: " + "x" * 4_097, "4097 characters are more than 4096"),
        ("x" * 128 + ": 1", "x" * 129 + ": 1", "129 characters are more than 128"),
        (nested(15, 16), nested(16, 16), "nested deeper than 32"),
        (repeated(197), repeated(198), "more than 20000 values"),
    ],
    ids=["lists", "mappings", "values", "text", "key", "aliased-depth", "aliased-values"],
)
def test_limits(most: str, over: str, message: str) -> None:
    assert read(most).problems == ()
    with pytest.raises(SpecError) as raised:
        read(over)
    [problem] = raised.value.errors
    assert (problem.code, problem.message) == ("limit", message)


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ({1, 2}, "wrong-type", "must be plain data, not set"),
        (b"x", "wrong-type", "must be plain data, not bytes"),
        (2**63, "limit", "whole numbers have at most 64 bits"),
        ("x" * 4097, "limit", "4097 characters are more than 4096"),
        ("\udc80", "yaml-syntax", "half of a surrogate pair is not a character"),
        ({1: 2}, "wrong-type", "a key must be text, not 1"),
        ({"x" * 129: 2}, "limit", "129 characters are more than 128"),
    ],
)
def test_mapping_holds_what_yaml_can_say(value: object, code: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        document_of({"a": [0, value]})
    [problem] = raised.value.errors
    assert (problem.file, problem.line, problem.snippet) == ("<mapping>", None, None)
    assert (problem.code, problem.path, problem.message) == (code, "a[1]", message)


def test_data_that_holds_itself_ends() -> None:
    data: dict[str, Any] = {}
    data["again"] = data
    with pytest.raises(SpecError, match="nested deeper than 32"):
        document_of(data)
    with pytest.raises(SpecError, match="more than 20000 values"):
        document_of({"a": [0] * 20_000})
