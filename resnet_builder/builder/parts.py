"""From a part in a spec to something that can be called."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from resnet_builder.blocks import (
    ACTIVATIONS,
    ANTIALIAS_FILTERS,
    ATTENTIONS,
    BLOCKS,
    HEADS,
    NORMS,
    SHORTCUTS,
    STEMS,
)
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS
from resnet_builder.registry import Registry
from resnet_builder.spec.schema import DataSpec, ModelSpec
from resnet_builder.spec.section import Part

Path = tuple[str | int, ...]

MODEL_PARTS: dict[str, Registry[Any]] = {
    "stem": STEMS,
    "block": BLOCKS,
    "shortcut": SHORTCUTS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "attention": ATTENTIONS,
    "antialias": ANTIALIAS_FILTERS,
    "head": HEADS,
}
"""The registry behind each key of ``model`` that names a part; stages have some of the keys."""

STAGE_PARTS = ("block", "shortcut", "attention")


def model_parts(model: ModelSpec) -> Iterator[tuple[Path, Part, Registry[Any]]]:
    """Yield every part named under ``model``, with its path in the spec and its registry."""
    for key, registry in MODEL_PARTS.items():
        part = head_of(model) if key == "head" else getattr(model, key)
        yield ("model", key), part, registry
    for number, stage in enumerate(model.stages):
        for key in STAGE_PARTS:
            if (part := getattr(stage, key)) is not None:
                yield ("model", "stages", number, key), part, MODEL_PARTS[key]


def data_parts(data: DataSpec) -> Iterator[tuple[Path, Part, Registry[Any]]]:
    """Yield every part named under ``data``, with its path in the spec and its registry."""
    yield ("data", "dataset"), data.dataset, DATASETS
    for number, part in enumerate(data.augment):
        yield ("data", "augment", number), part, AUGMENTATIONS


def head_of(model: ModelSpec) -> Part:
    """Return a network's head; ``auto`` is the one that belongs to the last stage's blocks."""
    if model.head.type != "auto":
        return model.head
    last = model.stages[-1].block or model.block
    name = "preact_linear" if is_preactivated(last) else "linear"
    return Part(type=name, **model.head.options)


def is_preactivated(block: Part) -> bool:
    """Tell whether a block gives a bare sum, which the head is to normalise."""
    return block.type in BLOCKS and getattr(BLOCKS.get(block.type), "preactivated", False)


def part_options(registry: Registry[Any], part: Part) -> dict[str, Any]:
    """Return every option of a part, defaults included, as the part is to be called with.

    Raises:
        RegistryError: No part of that name is registered.
        pydantic.ValidationError: An option is unknown, missing or out of range.
    """
    options = registry.options(part.type).model_validate(part.options)
    return {name: getattr(options, name) for name in type(options).model_fields}


def bind(registry: Registry[Any], part: Part, **contract: object) -> Callable[..., Any]:
    """Return the part as a callable, with its options and the contract's arguments filled in.

    Of the contract's arguments, a part is given those that its signature names.
    """
    accepted = registry.accepts(part.type)
    given = {name: value for name, value in contract.items() if name in accepted}
    return partial(registry.get(part.type), **given, **part_options(registry, part))
