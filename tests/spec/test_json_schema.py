"""The JSON Schema of specs, by an independent validator."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.builder import read_spec
from resnet_builder.parts import REGISTRIES
from resnet_builder.spec.bundled import bundled_file, bundled_names, recipe_names
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.json_schema import json_schema, json_schema_text
from resnet_builder.spec.yaml_source import parse_plain

Validator = jsonschema.Draft202012Validator

SCHEMA = json_schema(REGISTRIES)
REGISTERED = {key: list(registry.names()) for key, registry in REGISTRIES.items()}
"""Parts that the schema was made of; tests of plugins register more."""


def problems(text: str, schema: Any = SCHEMA) -> list[list[str | int]]:
    """Return where in a spec the validator finds something wrong."""
    data = parse_plain(text, "test")
    return sorted(list(error.absolute_path) for error in Validator(schema).iter_errors(data))


def mappings(part: Any = SCHEMA) -> Iterator[dict[str, Any]]:
    """Yield the schema of every mapping that a spec can have."""
    if isinstance(part, dict):
        if "properties" in part:
            yield part
        part = [*part.values()]
    if isinstance(part, list):
        for inside in part:
            yield from mappings(inside)


def named(definition: str) -> list[str]:
    """Return the parts that have a mapping with ``type`` in a definition."""
    choices = SCHEMA["$defs"][definition]["anyOf"]
    return [choice["properties"]["type"]["const"] for choice in choices if "properties" in choice]


def test_schema_is_valid() -> None:
    Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("name", [*bundled_names(), *recipe_names()])
def test_bundled_file_is_accepted(name: str) -> None:
    assert problems(bundled_file(name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", ["resnet18", "resnet20_digits", "seresnet110", "wrn16_8"])
def test_resolved_spec_is_accepted(name: str) -> None:
    assert problems(dump_spec(read_spec(name))) == []


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{version: 1, name: my-net_2.0, plugins: [my_blocks.py]}",
        "{name:, expect:, train:}",
        "train: {schedule: {warmup: {steps: 400, lr: 0.01}}, steps:, epochs: 5}",
        "train: {optimizer: {type: adamw, lr: 1e-3, betas: [0.9, 0.95]}, ema:}",
        "model: {block: {groups: 4}, shortcut: pad, stem: {channels: 64}}",
        "model: {attention: {type: eca, kernel:}, init: {mode: fan_in}, weights: mine.pth}",
        "model: {stages: [{channels: 4, blocks: 2, block: {type: bottleneck, groups: 2}}]}",
        "data: {validation: 5000, normalize: auto, preprocess: [to_rgb, {type: resize, size: 8}]}",
        "data: {augment: [horizontal_flip, {type: random_erasing, scale: [0.1, 0.2]}]}",
        "run: {device: cuda:1, precision: bf16, compile: false, threads: 4}",
    ],
)
def test_other_good_files_are_accepted(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("trian: {}", []),
        ("name: a b", ["name"]),
        ("model: {chanels: 3}", ["model"]),
        ("model: {block: bsic}", ["model", "block"]),
        ("model: {block: {type: basic, groups: 4}}", ["model", "block"]),
        ("model: {stem: conv3x3}", ["model", "stem"]),
        ("model: {stages: [{channels: 4}]}", ["model", "stages", 0]),
        (
            "model: {stages: [{channels: 4, blocks: 1, stride: 9}]}",
            ["model", "stages", 0, "stride"],
        ),
        ("data: {validation: 1.5}", ["data", "validation"]),
        ("data: {augment: horizontal_flip}", ["data", "augment"]),
        ("data: {augment: [{type: cutout, size: [1, 2]}]}", ["data", "augment", 0]),
        ("train: {optimizer: {type: sgd}}", ["train", "optimizer"]),
        ("run: {device: gpu}", ["run", "device"]),
        ("published: {test_top1: 0.9}", ["published"]),
        ("published: {test_top1: 91.25, source: me}", ["published", "test_top1"]),
    ],
)
def test_bad_file_is_refused(text: str, where: list[str | int]) -> None:
    assert problems(text) == [where]


def test_every_registered_part_is_described_with_its_options() -> None:
    for key, registry in REGISTRIES.items():
        assert named(key) == REGISTERED[key]
        for choice in SCHEMA["$defs"][key]["anyOf"]:
            if "properties" in choice:
                options = registry.options(choice["title"]).model_fields
                assert set(choice["properties"]) == {"type", *options}


def test_every_key_that_an_editor_shows_has_a_description() -> None:
    for mapping in mappings():
        for value in mapping["properties"].values():
            choices = [value] if "description" in value else value["anyOf"]
            assert all(choice["description"] for choice in choices), value


def test_option_has_range_default_and_what_its_part_says_of_it() -> None:
    [bottleneck] = [
        choice
        for choice in SCHEMA["$defs"]["block"]["anyOf"]
        if choice.get("title") == "bottleneck"
    ]
    assert bottleneck["properties"]["groups"] == {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 16384,
        "description": "Number of groups of the 3x3 convolution (ResNeXt's cardinality).",
        "default": 1,
    }
    assert bottleneck["additionalProperties"] is False


def test_options_of_every_kind_are_described() -> None:
    def mine(
        in_channels: int,
        channels: int,
        *,
        stride: int,
        twist: bool = True,
        sizes: tuple[int, ...] = (3, 5),
        pair: tuple[int, bool],
        anything: list,  # type: ignore[type-arg]  # what a plugin may write
        table: dict[str, int] | None = None,
        place: Path = Path("here"),
    ) -> None:
        """Twist."""

    with BLOCKS.temporary("mine", mine):
        choices = json.loads(json_schema_text(REGISTRIES))["$defs"]["block"]["anyOf"]
    [choice] = [choice for choice in choices if choice.get("title") == "mine"]
    kinds = {
        key: {word: value[word] for word in value if word != "description"}
        for key, value in choice["properties"].items()
    }
    assert kinds == {
        "type": {"const": "mine"},
        "twist": {"type": ["boolean", "null"], "default": True},
        "sizes": {"type": ["array", "null"], "items": {"type": "integer"}, "default": [3, 5]},
        "pair": {
            "type": ["array", "null"],
            "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
            "minItems": 2,
            "maxItems": 2,
        },
        "anything": {"type": ["array", "null"], "items": {}},
        "table": {"type": ["object", "null"], "additionalProperties": {"type": "integer"}},
        "place": {"type": ["string", "null"], "format": "path", "default": "here"},
    }
    assert "mine" not in choices[0]["enum"], "it cannot do without `pair`"
    assert choice["dependentRequired"] == {"type": ["pair", "anything"]}
