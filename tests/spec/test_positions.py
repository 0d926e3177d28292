"""From paths to places."""

from pathlib import Path

import pytest

from resnet_builder.errors import Problem, SpecPath
from resnet_builder.spec.plain import node_from_mapping
from resnet_builder.spec.positions import At, Positions
from resnet_builder.spec.source import Source
from resnet_builder.spec.tree import parse_yaml
from tests.spec.texts import draft, write

TEXT = """\
model:
  block: {groups: 2, type: bottleneck}
  stages:
    - {channels: 16}
"""


@pytest.fixture
def positions() -> Positions:
    source = Source("text", TEXT)
    return Positions(parse_yaml(source).root, [source])


@pytest.mark.parametrize(
    ("path", "at", "place"),
    [
        ((), "value", (1, 1)),
        (("model",), "value", (2, 3)),
        (("model",), "key", (1, 1)),
        (("model", "block"), "value", (2, 10)),
        (("model", "block"), "name", (2, 28)),
        (("model", "block"), "key", (2, 3)),
        (("model", "stages", 0), "value", (4, 7)),
        (("model", "stages", 0), "key", (4, 7)),
        (("model", "stages", 0, "channels"), "value", (4, 18)),
        (("model", "stages", 0, "channels"), "name", (4, 18)),
        pytest.param(("model", "stem"), "value", (1, 1), id="absent"),
        pytest.param(("model", "stages", 0, "block", "type"), "value", (4, 7), id="absent-deep"),
        pytest.param(("model", "stages", 5), "value", (3, 3), id="absent-item"),
        pytest.param(("model", 0), "value", (1, 1), id="no-list"),
        pytest.param(("train",), "key", (1, 1), id="absent-section"),
    ],
)
def test_place_is_that_of_the_value_or_of_the_nearest_ancestor(
    path: SpecPath, at: At, place: tuple[int, int], positions: Positions
) -> None:
    found = positions.place(path, at=at)
    assert (found.line, found.column) == place


def test_problem_has_the_line_it_is_on(positions: Positions) -> None:
    problem = positions.problem(
        "shape", ("model", "stages", 0, "channels"), "wrong", allowed=["1"], suggestion="1"
    )
    assert problem == Problem(
        "shape",
        "model.stages[0].channels",
        "wrong",
        file="text",
        line=4,
        col=18,
        snippet="    - {channels: 16}",
        allowed=("1",),
        suggestion="1",
    )


def test_mapping_has_no_lines() -> None:
    problem = Positions(node_from_mapping({"a": 1}).root).problem("shape", ("a",), "wrong")
    assert (problem.file, problem.line, problem.col, problem.snippet) == (
        "<mapping>",
        None,
        None,
        None,
    )


def test_relative_path_counts_from_the_file_it_is_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "plugins: [a.py]\n", "base.yaml")
    monkeypatch.chdir(tmp_path / "inner")
    found = draft(tmp_path, "train.seed=1", text="extends: inner/base.yaml\nname: x\n").positions
    assert found.base_dir(("plugins", 0)) == tmp_path / "inner"
    assert found.base_dir(("name",)) == tmp_path
    assert found.base_dir(("train", "seed")) == tmp_path / "inner"


def test_problems_are_ordered_as_their_places_are() -> None:
    first, second = Source("first", ""), Source("second", "")
    positions = Positions(node_from_mapping({}).root, [first, second, first])
    places = [("second", 1, 1), ("first", 2, 5), ("other", 1, 1), ("first", 2, 3), ("first", 1, 9)]
    found = [Problem("shape", "", "", file=f, line=line, col=col) for f, line, col in places]
    assert [found.index(one) for one in positions.ordered(found)] == [4, 3, 1, 0, 2]


def test_arguments_are_ordered_as_they_were_given() -> None:
    sources = [Source("--set", text, has_lines=False) for text in ("b=1", "a=1", "c=1")]
    positions = Positions(node_from_mapping({}).root, sources)
    found = [
        source.place(0, column).problem("shape", "") for source in sources for column in (2, 0)
    ]
    assert [(one.snippet, one.col) for one in positions.ordered(reversed(found))] == [
        ("b=1", 1),
        ("b=1", 3),
        ("a=1", 1),
        ("a=1", 3),
        ("c=1", 1),
        ("c=1", 3),
    ]
