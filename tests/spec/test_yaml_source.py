"""YAML sources: files, limits, the meaning of plain words, and positions."""

import math
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from resnet_builder.errors import Problem, SpecError, StorageError
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.yaml_source import (
    MAX_BYTES,
    AmbiguousError,
    Document,
    Node,
    Source,
    document_of,
    parse_yaml,
    plain,
    read_yaml,
    resolve,
    source_of,
)
from tests.spec.texts import FULL, write

NOTHING = "there is no such file"


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as raised:
        read_yaml(path)
    [problem] = raised.value.errors
    assert problem.file == str(path)
    return f"{problem.code}: {problem.message}"


def test_unreadable_file_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "spec.yaml"
    path.write_text(FULL)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError) as raised:
        read_yaml(path)
    assert str(raised.value) == f"cannot read {path}: Permission denied"
    assert raised.value.exit_code == 7


@pytest.mark.parametrize("name", ["a\0b.yaml", "\ud800.yaml", "x" * 5000 + ".yaml"])
def test_impossible_file_name_is_a_missing_file(name: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / name) == f"unknown-name: {NOTHING}"


def test_large_file_is_refused_after_a_bounded_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    assert refusal(path) == "limit: the file is larger than 256 KiB"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


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
        pytest.param("name: x".encode("utf-16"), (1, 1), "the file is UTF-16", id="utf16"),
        pytest.param(
            "name: x".encode("utf-16-be"), (1, 1), "U+0000 cannot stand", id="utf16-no-mark"
        ),
        pytest.param(b"a: 1\nb: caf\xe9", (2, 7), "byte 0xE9 is not UTF-8", id="latin1"),
        pytest.param(
            b"\xef\xbb\xbfa: 1\r\nb\xe9", (2, 2), "byte 0xE9 is not UTF-8", id="bom-latin1"
        ),
        pytest.param(b"a: x\0", (1, 5), "U+0000 cannot stand", id="nul"),
        pytest.param(b"a: 1\r\rb: \x07", (3, 4), "U+0007 cannot stand", id="bell"),
        pytest.param(b"a: \x1b[2J", (1, 4), "U+001B cannot stand", id="escape"),
        pytest.param("a: \u2028".encode(), (1, 4), "U+2028 cannot stand", id="separator"),
        pytest.param("a: \x85".encode(), (1, 4), "U+0085 cannot stand", id="next-line"),
        pytest.param(b"a: \xed\xa0\x80", (1, 4), "byte 0xED is not", id="surrogate"),
        pytest.param(b'a: "\\ud800"', (1, 4), "half of a surrogate", id="surrogate-escape"),
        pytest.param(b'"\\udfff": 1', (1, 1), "half of a surrogate", id="surrogate-key"),
    ],
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


def test_source_keeps_every_other_character() -> None:
    text = "a: \t\u00e9\u4e2d\U0001f600\u200b\ufeff\n"
    assert source_of(text).text == text


MEANINGS = [
    pytest.param("1e-4", 0.0001, id="1e-4"),
    pytest.param("1e4", 10000.0, id="1e4"),
    pytest.param("1.5e4", 15000.0, id="1.5e4"),
    pytest.param("1E+3", 1000.0, id="1E+3"),
    pytest.param(".5", 0.5, id="no-integer-part"),
    pytest.param("1.", 1.0, id="no-fraction"),
    pytest.param("-1", -1, id="negative"),
    pytest.param("+12", 12, id="plus"),
    pytest.param("0", 0, id="zero"),
    pytest.param("-0.0", -0.0, id="minus-zero"),
    pytest.param("0o17", 15, id="0o17"),
    pytest.param("0xfF", 255, id="hexadecimal"),
    pytest.param("190:20:30", "190:20:30", id="190:20:30"),
    pytest.param("16:9", "16:9", id="16:9"),
    pytest.param("2020-01-01", "2020-01-01", id="date"),
    pytest.param("2020-13-45", "2020-13-45", id="no-date"),
    pytest.param("0b_", "0b_", id="0b_"),
    pytest.param("0b11", "0b11", id="0b11"),
    pytest.param("1e400", math.inf, id="1e400"),
    pytest.param("-.inf", -math.inf, id="minus-infinity"),
    pytest.param("true", True, id="true"),
    pytest.param("FALSE", False, id="FALSE"),
    pytest.param("tRUE", "tRUE", id="tRUE"),
    pytest.param("null", None, id="null"),
    pytest.param("~", None, id="tilde"),
    pytest.param("", None, id="nothing"),
    pytest.param("y", "y", id="y"),
    pytest.param("=", "=", id="equals"),
    pytest.param("${HOME}", "${HOME}", id="shell"),
    pytest.param("~/data", "~/data", id="home"),
    pytest.param("{{ x }}", "{{ x }}", id="template"),
    pytest.param("%(x)s", "%(x)s", id="format"),
    pytest.param("1_000a", "1_000a", id="underscored-text"),
    pytest.param("_1", "_1", id="underscore-first"),
    pytest.param("0x", "0x", id="no-digits"),
    pytest.param("-0x1", "-0x1", id="signed-hexadecimal"),
    pytest.param("1e", "1e", id="no-exponent"),
    pytest.param(".", ".", id="point"),
    pytest.param("\u0661", "\u0661", id="arabic-digit"),
]


@pytest.mark.parametrize(("text", "value"), MEANINGS)
def test_plain_word_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "value", "spelling"),
    [
        pytest.param("no", False, "false", id="no"),
        pytest.param("Off", False, "false", id="Off"),
        pytest.param("YES", True, "true", id="YES"),
        pytest.param("on", True, "true", id="on"),
        pytest.param("010", 10, "10", id="010"),
        pytest.param("-007", -7, "-7", id="-007"),
        pytest.param("+08", 8, "8", id="+08"),
        pytest.param("00", 0, "0", id="00"),
        pytest.param("1_000", 1000, "1000", id="1_000"),
        pytest.param("1_0.5e1", 100.0 + 5.0, "10.5e1", id="1_0.5e1"),
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


def fatal(text: str) -> Problem:
    with pytest.raises(SpecError) as raised:
        read(text)
    return raised.value.errors[-1]


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


def test_values_are_read_in_every_style() -> None:
    text = """\
block: {a: [1, 'two', "three\\n"], "quoted": "1"}
folded: >-
  one
  two
literal: |
  one
   two
nested:
  - - 1
    - 2
  - x: y
? explicit
: value
"""
    assert plain(read(text).root) == {
        "block": {"a": [1, "two", "three\n"], "quoted": "1"},
        "folded": "one two",
        "literal": "one\n two\n",
        "nested": [[1, 2], {"x": "y"}],
        "explicit": "value",
    }


def test_places_of_block_style_are_those_of_the_text() -> None:
    text = "# comment\na: 1\nb:\n  c: x\n  d:\n    - 5\n    - e: 6\n"
    assert places(read(text).root) == {
        "": (2, 1),
        ".a": (2, 4, 2, 1),
        ".b": (4, 3, 3, 1),
        ".b.c": (4, 6, 4, 3),
        ".b.d": (6, 5, 5, 3),
        ".b.d[0]": (6, 7),
        ".b.d[1]": (7, 7),
        ".b.d[1].e": (7, 10, 7, 7),
    }


def test_places_of_flow_style_are_those_of_the_text() -> None:
    assert places(read("a: {b: [1, {c: 2}], \U0001f600: 3}").root) == {
        "": (1, 1),
        ".a": (1, 4, 1, 1),
        ".a.b": (1, 8, 1, 5),
        ".a.b[0]": (1, 9),
        ".a.b[1]": (1, 12),
        ".a.b[1].c": (1, 16, 1, 13),
        ".a.\U0001f600": (1, 24, 1, 21),
    }


def test_text_before_the_start_counts_in_columns_only() -> None:
    document = parse_yaml(Source("argument", "key: [=[1, x]"), start=7)
    assert places(document.root) == {"": (1, 8), "[0]": (1, 9), "[1]": (1, 12)}


def test_what_can_be_read_on_from_is_noted_with_what_was_meant() -> None:
    document = read("a: no\nb: 010\nb: 3\nc: !!int 7\nd: &x 5\n1: 2\n<<: {}\n")
    assert plain(document.root) == {"a": False, "b": 10, "c": 7, "d": 5}
    assert [(problem.code, problem.path, problem.line) for problem in document.problems] == [
        ("yaml-ambiguous", "a", 1),
        ("yaml-ambiguous", "b", 2),
        ("duplicate-key", "b", 3),
        ("yaml-tag", "c", 4),
        ("yaml-alias", "d", 5),
        ("wrong-type", "1", 6),
        ("yaml-alias", "<<", 7),
    ]


def test_keys_are_compared_as_they_are_read() -> None:
    document = read("a: 1\n'a': 2\n\"\\x61\": {b: [no]}\n'1': 1\n'01': 2\n")
    assert plain(document.root) == {"a": 1, "1": 1, "01": 2}
    assert [problem.path for problem in document.problems] == ["a", "a", "a.b[0]"]


def test_yaml_1_2_directive_is_accepted() -> None:
    document = read("%YAML 1.2 # of 2009\n---\na: 1\n...\n")
    assert (plain(document.root), document.problems) == ({"a": 1}, ())


def test_integers_have_64_bits() -> None:
    assert read(f"a: {2**63 - 1}\nb: {-(2**63)}\nc: 0x{'f' * 15}").problems == ()
    for text in (f"{2**63}", f"0x{'f' * 4000}", "0o" + "7" * 4000, "9" * 4000):
        [problem] = read(f"a: {text}").problems
        assert (problem.code, problem.path, problem.col) == ("limit", "a", 4)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_nesting_is_limited(opening: str, depth: int) -> None:
    start = time.monotonic()
    problem = fatal(opening * depth)
    assert (problem.code, problem.message) == ("limit", "nested deeper than 32")
    assert time.monotonic() - start < 5, "a hang"


def test_nesting_of_32_is_read() -> None:
    assert read("[" * 32 + "]" * 32).problems == ()


def test_keys_count_as_values() -> None:
    text = "".join(f"k{n}: 0\n" for n in range(10_000))
    assert fatal(text).message == "more than 20000 values"


def test_length_of_text_is_limited() -> None:
    assert read("a: " + "x" * 4_096).problems == ()
    problem = fatal("a: " + "x" * 4_097)
    assert (problem.code, problem.message, problem.col) == (
        "limit",
        "4097 characters are more than 4096",
        4,
    )
    assert read("x" * 128 + ": 1").problems == ()
    assert fatal("x" * 129 + ": 1").message == "129 characters are more than 128"


def test_problems_before_a_fatal_one_are_kept() -> None:
    with pytest.raises(SpecError) as raised:
        read("a: no\nb: [")
    assert [problem.code for problem in raised.value.errors] == ["yaml-ambiguous", "yaml-syntax"]


def refused_value(value: Any) -> Problem:
    with pytest.raises(SpecError) as raised:
        document_of({"a": [0, value]})
    [problem] = raised.value.errors
    assert (problem.file, problem.line, problem.snippet) == ("<mapping>", None, None)
    return problem


def test_other_mappings_and_tuples_are_taken() -> None:
    data = MappingProxyType({"a": OrderedDict(b=(1, 2))})
    assert plain(document_of(data).root) == {"a": {"b": [1, 2]}}


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
def test_what_yaml_has_no_word_for_is_refused_value(value: object, code: str, message: str) -> None:
    problem = refused_value(value)
    assert (problem.code, problem.path, problem.message) == (code, "a[1]", message)


def test_keys_must_be_text() -> None:
    assert refused_value({1: 2}).message == "a key must be text, not 1"
    assert refused_value({"x" * 129: 2}).message == "129 characters are more than 128"


def test_data_that_holds_itself_ends() -> None:
    data: dict[str, Any] = {}
    data["again"] = data
    with pytest.raises(SpecError, match="nested deeper than 32"):
        document_of(data)
    with pytest.raises(SpecError, match="more than 20000 values"):
        document_of({"a": [0] * 20_000})
