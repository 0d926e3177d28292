"""Writing out what a spec leaves to defaults, so that a later release rebuilds the same."""

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from resnet_builder.builder.parts import (
    MODEL_PARTS,
    STAGE_PARTS,
    bind,
    head_of,
    part_options,
)
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS, DatasetInfo
from resnet_builder.data.preprocess import preprocess_shape
from resnet_builder.errors import PartError
from resnet_builder.registry import Registry
from resnet_builder.runs.records import first_problem
from resnet_builder.spec.schema import DataSpec, ModelSpec, Spec, StageSpec
from resnet_builder.spec.section import Part

DEFAULT_CHANNELS = 3
DEFAULT_IMAGE_SIZE = 32


def resolve(spec: Spec) -> Spec:
    """Write out every default and every option of every part.

    Raises:
        PartError: A part's options are wrong.
        RegistryError: A part is not registered.
    """
    return spec.model_copy(
        update={
            "model": resolve_model(spec.model, spec.data),
            "data": None if spec.data is None else resolve_data(spec.data),
        }
    )


def resolve_model(model: ModelSpec, data: DataSpec | None) -> ModelSpec:
    """Write out a network's defaults; channels and size are the data set's where not given."""
    facts = DatasetInfo() if data is None else input_info(data)
    model = model.model_copy(update={"head": head_of(model)})
    parts = {key: _resolve_part(MODEL_PARTS[key], getattr(model, key)) for key in MODEL_PARTS}
    return model.model_copy(
        update={
            **parts,
            "in_channels": model.in_channels or facts.channels or DEFAULT_CHANNELS,
            "image_size": model.image_size or facts.image_size or DEFAULT_IMAGE_SIZE,
            "stages": tuple(_resolve_stage(stage) for stage in model.stages),
        }
    )


def resolve_data(data: DataSpec) -> DataSpec:
    """Write out the options of the data set and of the augmentations."""
    return data.model_copy(
        update={
            "dataset": _resolve_part(DATASETS, data.dataset),
            "augment": tuple(_resolve_part(AUGMENTATIONS, part) for part in data.augment),
        }
    )


def input_info(data: DataSpec) -> DatasetInfo:
    """Return what is known, before reading any, of the images a network is fed."""
    facts: DatasetInfo = bind(DATASETS, data.dataset)().facts
    channels, size = preprocess_shape(data.preprocess, facts.channels, facts.image_size)
    return replace(facts, channels=channels, image_size=size)


def _resolve_stage(stage: StageSpec) -> StageSpec:
    parts = {key: getattr(stage, key) for key in STAGE_PARTS}
    return stage.model_copy(
        update={key: part and _resolve_part(MODEL_PARTS[key], part) for key, part in parts.items()}
    )


def _resolve_part(registry: Registry[Any], part: Part) -> Part:
    try:
        options = part_options(registry, part)
    except ValidationError as error:
        raise PartError(f"{part.type}: {first_problem(error)}", code="wrong-type") from error
    return Part(type=part.type, **options)
