"""YAML text to trees: values, places and limits."""

import time

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.plain import plain
from resnet_builder.spec.source import Document, Node, Source
from resnet_builder.spec.tree import parse_yaml


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


def test_json_is_read() -> None:
    assert plain(read('{"a": [1, null, true, 1.5e3], "b": {}}').root) == {
        "a": [1, None, True, 1500.0],
        "b": {},
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


def test_duplicates_are_compared_as_they_are_read_row06() -> None:
    """Quoted and plain keys are the same key, and of a number's spellings each is text."""
    document = read("a: 1\n'a': 2\n\"\\x61\": 3\n'1': 1\n'01': 2\n")
    assert plain(document.root) == {"a": 1, "1": 1, "01": 2}
    assert [problem.line for problem in document.problems] == [2, 3]


def test_problem_inside_a_dropped_value_is_still_noted() -> None:
    document = read("a: 1\na: {b: [no]}")
    assert [problem.path for problem in document.problems] == ["a", "a.b[0]"]


def test_yaml_1_2_directive_is_accepted() -> None:
    document = read("%YAML 1.2 # of 2009\n---\na: 1\n...\n")
    assert (plain(document.root), document.problems) == ({"a": 1}, ())


def test_integers_have_64_bits_row11() -> None:
    assert read(f"a: {2**63 - 1}\nb: {-(2**63)}\nc: 0x{'f' * 15}").problems == ()
    for text in (f"{2**63}", f"0x{'f' * 4000}", "0o" + "7" * 4000, "9" * 4000):
        [problem] = read(f"a: {text}").problems
        assert (problem.code, problem.path, problem.col) == ("limit", "a", 4)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_nesting_is_limited_row30(opening: str, depth: int) -> None:
    start = time.monotonic()
    problem = fatal(opening * depth)
    assert (problem.code, problem.message) == ("limit", "nested deeper than 32")
    assert time.monotonic() - start < 5, "a hang"


def test_nesting_of_32_is_read() -> None:
    assert read("[" * 32 + "]" * 32).problems == ()


def test_number_of_values_is_limited() -> None:
    assert fatal("[" + "0," * 19_999 + "0]").message == "more than 20000 values"
    assert len(plain(read("[" + "0," * 19_998 + "0]").root)) == 19_999


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


def test_billion_laughs_are_not_laughed_row29() -> None:
    """Aliases are never followed, so the tree is no larger than the text."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, below in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(f'*{below}' for _ in range(9))}]")
    document = read("\n".join(lines))
    assert len(document.problems) == 9 + 8 * 9
    assert {problem.code for problem in document.problems} == {"yaml-alias"}
    assert plain(document.root)["i"] == [None] * 9


def test_problems_before_a_fatal_one_are_kept() -> None:
    with pytest.raises(SpecError) as raised:
        read("a: no\nb: [")
    assert [problem.code for problem in raised.value.errors] == ["yaml-ambiguous", "yaml-syntax"]
