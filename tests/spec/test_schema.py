"""What the models of a spec promise, beyond what messages show."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from resnet_builder.spec.schema import RunSpec, SpecFile
from resnet_builder.spec.section import PATTERN_WORDS, Part, Section, is_name
from resnet_builder.spec.structure import slots


def models() -> set[type[BaseModel]]:
    found = {member.model for _, member in slots(SpecFile) if member.model is not None}
    return {SpecFile, *found}


@pytest.mark.parametrize("model", sorted(models(), key=str))
def test_model_and_its_fields_are_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    for name, field in model.model_fields.items():
        if name != "type" or model is Part:
            assert field.description, name


@pytest.mark.parametrize("model", sorted(models(), key=str))
def test_null_never_differs_from_the_default(model: type[BaseModel]) -> None:
    """Null is as good as absent, so a field that takes null must not default to something else."""
    for name, field in model.model_fields.items():
        if type(None) in getattr(field.annotation, "__args__", ()):
            assert field.default is None, name


def test_models_are_frozen_and_forbid_other_keys() -> None:
    for model in models() - {Part}:
        assert issubclass(model, Section)
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"


def test_every_pattern_has_words() -> None:
    patterns = set()
    for _, member in slots():
        patterns |= {getattr(limit, "pattern", None) for limit in member.limits}
    assert patterns - {None} == PATTERN_WORDS.keys()


def test_json_schema_can_be_made() -> None:
    schema = SpecFile.model_json_schema()
    assert {"model", "train", "extends"} <= schema["properties"].keys()
    assert schema["properties"]["version"]["const"] == 1


def test_part_holds_nothing_that_changes() -> None:
    options: dict[str, Any] = {"type": "x", "a": [1, [2]], "b": {"c": [3]}}
    part = Part.model_validate(options)
    assert part.options == {"a": (1, (2,)), "b": {"c": (3,)}}
    with pytest.raises(ValidationError, match="frozen"):
        part.type = "y"  # type: ignore[misc]  # what the test is about


@pytest.mark.parametrize(
    ("device", "is_good"),
    [
        ("cuda:0", True),
        ("cuda:15", True),
        ("mps", True),
        ("cuda:", False),
        ("cuda:100", False),
        ("cpu\n", False),
        ("tpu", False),
    ],
)
def test_device_is_one_of_few(device: str, is_good: bool) -> None:
    if is_good:
        assert RunSpec(device=device).device == device
    else:
        with pytest.raises(ValidationError):
            RunSpec(device=device)


def test_name_rule_is_the_same_for_files_and_keys() -> None:
    assert all(is_name(name) for name in ("a", "resnet32.v2", "0-_", "x" * 64, "console"))
    assert not any(is_name(name) for name in ("", "a b", ".a", "x" * 65, "Aux", "lpt1.yaml", "a\n"))
