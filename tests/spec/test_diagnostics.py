"""Messages: golden ones of bad specs, those of parts' options, and positions."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from resnet_builder.errors import Problem, SpecError, SpecPath
from resnet_builder.registry import Registry
from resnet_builder.spec.diagnostics import At, Positions, problems_from
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.section import Part
from resnet_builder.spec.yaml_source import Source, document_of, parse_yaml
from tests.spec.texts import BAD_BASE, BAD_FILES, FULL, bad_specs, draft, problems, write

CASES = bad_specs()


@pytest.mark.parametrize("name", CASES)
def test_bad_spec_gets_its_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run with ``REGENERATE_GOLDEN=1``, this writes the messages anew: read the diff."""
    spec, wanted = CASES[name]
    write(tmp_path, BAD_BASE, "base.yaml")
    write(tmp_path, spec, name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as raised:
        load_spec(name)
    message = f"{raised.value}\n"
    if os.environ.get("REGENERATE_GOLDEN"):
        for file in BAD_FILES:
            text = file.read_text(encoding="utf-8")
            old, new = (f"==== {name}\n{spec}----\n{one}" for one in (wanted, message))
            file.write_text(text.replace(old, new), encoding="utf-8")
        return
    assert message == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["base.yaml", name])


THINGS: Registry[Callable[..., Any]] = Registry("thing", contract=("stride",))


def _is_even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


def _is_odd(value: int) -> int:
    if not value % 2:
        raise PydanticCustomError("plugin_own", "{value} is not odd", {"value": value})
    return value


@THINGS.register("thing")
def thing(
    channels: int,
    *,
    stride: int,
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    mode: Literal["both", "end"] = "both",
    size: int | tuple[int, int] = 3,
    scale: tuple[float, float] = (0.0, 1.0),
    names: Annotated[tuple[str, ...], Field(max_length=2)] = (),
    limit: Annotated[int, Field(gt=0, le=8)] | None = None,
    triple: Annotated[int, Field(multiple_of=3)] = 3,
    even: Annotated[int, AfterValidator(_is_even)] = 2,
    odd: Annotated[int, AfterValidator(_is_odd)] = 1,
    table: dict[str, int] | None = None,
) -> None:
    """Have options of every kind."""


def wrong(**options: object) -> list[Problem]:
    """Return what is wrong with the options of the part."""
    positions = Positions(document_of({"part": {"type": "thing", **options}}).root)
    part = Part.model_validate({"type": "thing", **options})
    model = THINGS.options("thing")
    with pytest.raises(ValidationError) as raised:
        model.model_validate(part.options)
    return problems_from(
        raised.value, positions, ("part",), model, unknown_key_code="unknown-option"
    )


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("ratio", 2, ("out-of-range", "2 is out of range", ("at least 0 and less than 1",), None)),
        ("ratio", "0.5", ("wrong-type", "must be a number, not the text '0.5'", (), "0.5")),
        ("mode", "ends", ("unknown-name", "no mode is named 'ends'", ("both", "end"), "end")),
        ("mode", 5, ("wrong-type", "must be `both` or `end`, not 5", (), None)),
        (
            "size",
            "x",
            (
                "wrong-type",
                "must be a whole number or a list of 2 numbers, not the text 'x'",
                (),
                None,
            ),
        ),
        (
            "size",
            2.0,
            ("wrong-type", "must be a whole number or a list of 2 numbers, not 2.0", (), "2"),
        ),
        ("scale", [1, 2, 3], ("out-of-range", "3 items are too many", ("2 items",), None)),
        ("names", ["a"] * 3, ("out-of-range", "3 items are too many", ("at most 2 items",), None)),
        ("names", "a", ("wrong-type", "must be a list, not the text 'a'", (), "[a]")),
        ("limit", 9, ("out-of-range", "9 is out of range", ("more than 0 and at most 8",), None)),
        ("triple", 4, ("out-of-range", "must be a multiple of 3, not 4", (), None)),
        ("even", 3, ("out-of-range", "must be even", (), None)),
        ("odd", 2, ("out-of-range", "2 is not odd", (), None)),
        ("table", [1], ("wrong-type", "must be a mapping, not a list", (), None)),
    ],
)
def test_option_gets_a_message_of_its_kind(
    option: str, value: object, wanted: tuple[object, ...]
) -> None:
    [one] = wrong(**{option: value})
    assert one.path == f"part.{option}"
    assert (one.code, one.message, one.allowed, one.suggestion) == wanted


def test_items_of_options_are_pointed_at() -> None:
    paths = [(one.code, one.path) for one in wrong(size=[1, "x"], scale=[1], table={"a": "b"})]
    assert paths == [
        ("wrong-type", "part.size[1]"),
        ("missing-key", "part.scale[1]"),
        ("wrong-type", "part.table.a"),
    ]


def test_value_of_several_kinds_is_wrong_once() -> None:
    [problem] = problems(FULL + "run: {threads: 0}")
    assert (problem.code, problem.allowed) == ("out-of-range", ("auto", "1 to 1024"))


@pytest.mark.parametrize("value", ["-1", "1.5", "1.0", "0.0", "-0.5", ".nan"])
def test_amount_for_validation_is_a_number_or_a_fraction(value: str) -> None:
    [problem] = problems(FULL.replace("validation: 0.1", f"validation: {value}"))
    assert problem.code == "out-of-range"
    assert problem.allowed == (
        "auto",
        "a whole number, 0 to 2147483647",
        "or a fraction, more than 0 and less than 1",
    )


def test_mapping_that_could_be_a_word_is_checked_as_a_mapping() -> None:
    found = problems(FULL.replace("augment:", "normalize: {mean: [2], std: x}\n  augment:"))
    assert [(one.code, one.path) for one in found] == [
        ("out-of-range", "data.normalize.mean[0]"),
        ("wrong-type", "data.normalize.std"),
    ]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("model: {Act: relu}", "activation"),
        ("_base_: x", "extends"),
        ("extend: x", "extends"),
        ("learning_rate: 1", "train.optimizer.lr"),
        ("train: {schedule: {type: cosine, gamma: 1}}", None),
        ("xyzzy: 1", None),
    ],
)
def test_unknown_key_gets_the_name_or_the_place_of_ours(text: str, suggestion: str | None) -> None:
    found = [one for one in problems(text) if one.code == "unknown-key"]
    assert [one.suggestion for one in found] == [suggestion]


@pytest.mark.parametrize(
    ("value", "suggestion"),
    [
        ('"10"', "10"),
        ('"010"', "10"),
        ("1e2", "100"),
        ("10.5", None),
        ("ten", None),
        ('"1e2"', None),
        ("[1]", None),
    ],
)
def test_wrong_kind_gets_the_right_spelling(value: str, suggestion: str | None) -> None:
    [problem] = problems(FULL.replace("batch_size: 32", f"batch_size: {value}"))
    assert (problem.code, problem.suggestion) == ("wrong-type", suggestion)


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
        (("model",), "key", (1, 1)),
        (("model", "block"), "value", (2, 10)),
        (("model", "block"), "name", (2, 28)),
        (("model", "block"), "key", (2, 3)),
        (("model", "stages", 0), "key", (4, 7)),
        (("model", "stages", 0, "channels"), "value", (4, 18)),
        pytest.param(("model", "stem"), "value", (1, 1), id="absent"),
        pytest.param(("model", "stages", 0, "block", "type"), "value", (4, 7), id="absent-deep"),
        pytest.param(("model", "stages", 5), "value", (3, 3), id="absent-item"),
    ],
)
def test_place_is_that_of_the_value_or_of_the_nearest_ancestor(
    path: SpecPath, at: At, place: tuple[int, int], positions: Positions
) -> None:
    found = positions.place(path, at=at)
    assert (found.line, found.column) == place


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
