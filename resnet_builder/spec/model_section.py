"""The ``model`` section: a network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from resnet_builder.spec.section import AnyPart, Part, Section, Side, Width, part_rule, problem


class StageSpec(Section):
    """A run of blocks of one width; only the first one strides."""

    channels: Width = Field(description="Inner width; the block's expansion comes on top.")
    blocks: Annotated[int, Field(ge=1, le=1_000)] = Field(description="Number of blocks.")
    stride: Annotated[int, Field(ge=1, le=8)] = Field(1, description="Of the first block.")
    block: AnyPart | None = Field(None, description="Instead of the model's, in this stage.")
    shortcut: AnyPart | None = Field(None, description="Instead of the model's, in this stage.")
    attention: AnyPart | None = Field(None, description="Instead of the model's, in this stage.")


class FanInit(Section):
    """Scaled by the number of inputs or outputs (He et al. 2015b; Glorot and Bengio 2010)."""

    type: Literal["kaiming_normal", "kaiming_uniform"]
    mode: Literal["fan_in", "fan_out"] = Field("fan_out", description="Which number.")


class XavierInit(Section):
    """Scaled by inputs and outputs together (Glorot and Bengio 2010)."""

    type: Literal["xavier_normal", "xavier_uniform"]


class NormalInit(Section):
    """One deviation for every convolution."""

    type: Literal["normal"]
    std: Annotated[float, Field(gt=0)] = Field(0.01, description="The deviation.")


class DefaultInit(Section):
    """Each layer's own, as PyTorch makes it."""

    type: Literal["default"]


InitSpec = Annotated[
    FanInit | XavierInit | NormalInit | DefaultInit,
    Field(discriminator="type"),
    part_rule("kaiming_normal"),
]


class ModelSpec(Section):
    """A network: stem, stages of blocks, head."""

    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Logits.")
    in_channels: Width | None = Field(
        None, description="Channels of an image; default: the dataset's, else 3."
    )
    image_size: Side | None = Field(
        None, description="Pixels a side; default: the dataset's, else 32."
    )
    stem: AnyPart = Field(description="The layers before the first stage.")
    block: AnyPart = Field(description="What stages are made of.")
    shortcut: AnyPart = Field(description="The blocks' skip path.")
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16, strict=False)] = (
        Field(description="Runs of blocks, from the stem to the head.")
    )
    norm: Annotated[Part, part_rule("batch_norm")] = Field(
        Part(type="batch_norm"), description="The normalisation after each convolution."
    )
    activation: Annotated[Part, part_rule("relu")] = Field(
        Part(type="relu"), description="The non-linearity."
    )
    attention: Annotated[Part, part_rule("none")] = Field(
        Part(type="none"), description="What reweights each block's residual."
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Probability at the last block; linear from 0 at the first."
    )
    init: InitSpec = Field(
        FanInit(type="kaiming_normal"), description="How convolutions get their first weights."
    )
    zero_init_residual: bool = Field(
        False, description="Start every block as its shortcut (Goyal et al. 2017)."
    )
    head: Annotated[Part, part_rule("linear")] = Field(
        Part(type="linear"), description="The layers after the last stage."
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        blocks = sum(stage.blocks for stage in self.stages)
        if blocks > 2_000:
            raise problem(
                "limit", "{blocks} blocks are more than 2000 in all", at="stages", blocks=blocks
            )
        return self
