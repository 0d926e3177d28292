"""Models of a spec, beyond what messages show."""

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from resnet_builder.errors import SpecPath
from resnet_builder.spec.schema import SpecFile, models_at, short_key
from resnet_builder.spec.section import PATTERN_WORDS, Part


def models() -> set[type[BaseModel]]:
    """Return the model of every section of a spec."""
    found: set[type[BaseModel]] = set()

    def visit(model: type[BaseModel], path: tuple[str | int, ...]) -> None:
        found.add(model)
        for key in model.model_fields:
            for at in ((*path, key), (*path, key, 0)):
                for below in models_at(at):
                    visit(below, at)

    visit(SpecFile, ())
    return found


@pytest.mark.parametrize("model", sorted(models(), key=str))
def test_null_never_differs_from_the_default(model: type[BaseModel]) -> None:
    """Null is as good as absent, so a field that takes null must not default to something else."""
    for name, field in model.model_fields.items():
        if type(None) in getattr(field.annotation, "__args__", ()):
            assert field.default is None, name


def test_every_pattern_has_words() -> None:
    text = json.dumps(SpecFile.model_json_schema())
    assert set(re.findall(r'"pattern": ("[^"]*")', text)) == {
        json.dumps(pattern) for pattern in PATTERN_WORDS
    }


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("model", "stem"), "type"),
        (("model", "init"), "type"),
        (("model", "stages", 3, "shortcut"), "type"),
        (("data", "dataset"), "type"),
        (("data", "preprocess", 0), "type"),
        (("data", "augment", 12), "type"),
        (("train", "schedule", "warmup"), "type"),
        (("train", "loss"), "type"),
        (("model", "weights"), "path"),
        ((), None),
        (("model",), None),
        (("model", "stages"), None),
        (("train", "ema"), None),
        (("data", "augment"), None),
        (("x",), None),
    ],
)
def test_scalar_stands_for_a_part_s_type_or_a_path(path: SpecPath, key: str | None) -> None:
    assert short_key(path) == key


def test_part_holds_nothing_that_changes() -> None:
    options: dict[str, Any] = {"type": "x", "a": [1, [2]], "b": {"c": [3]}}
    part = Part.model_validate(options)
    assert part.options == {"a": (1, (2,)), "b": {"c": (3,)}}
    with pytest.raises(ValidationError, match="frozen"):
        part.type = "y"  # type: ignore[misc]  # what the test is about
