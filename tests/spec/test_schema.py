"""Models of a spec, beyond what messages show."""

import json
import re

import pytest
from pydantic import BaseModel

from resnet_builder.errors import SpecPath
from resnet_builder.spec.schema import SpecFile, models_at, short_key
from resnet_builder.spec.section import PATTERN_WORDS


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
        (("model", "stages", 3, "shortcut"), "type"),
        (("data", "augment", 12), "type"),
        (("train", "schedule", "warmup"), "type"),
        (("model", "weights"), "path"),
        (("model",), None),
        (("train", "ema"), None),
        (("x",), None),
    ],
)
def test_scalar_stands_for_a_part_s_type_or_a_path(path: SpecPath, key: str | None) -> None:
    assert short_key(path) == key
