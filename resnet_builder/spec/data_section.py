"""The ``data`` section: images, their split, and what happens to them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from resnet_builder.spec.section import (
    AnyPart,
    Auto,
    Fraction,
    Section,
    Seed,
    Side,
    part_rule,
    problem,
)


class Resize(Section):
    """Resize the shorter side to ``size``, keeping the proportions."""

    type: Literal["resize"]
    size: Side = Field(description="Pixels.")


class CenterCrop(Section):
    """Cut the middle ``size`` x ``size`` pixels, padding smaller images with zeros."""

    type: Literal["center_crop"]
    size: Side = Field(description="Pixels a side.")


class ToRgb(Section):
    """Repeat the one channel of a grey image three times; leave three channels as they are."""

    type: Literal["to_rgb"]


PreprocessSpec = Annotated[Resize | CenterCrop | ToRgb, Field(discriminator="type"), part_rule()]

_CHANNELS = Field(min_length=1, max_length=16_384, strict=False)
ChannelMeans = Annotated[tuple[Fraction, ...], _CHANNELS]
Deviation = Annotated[float, Field(gt=0, le=1)]
ChannelDeviations = Annotated[tuple[Deviation, ...], _CHANNELS]


class Normalize(Section):
    """Mean and standard deviation of each channel, in units where white is 1."""

    mean: ChannelMeans = Field(description="Subtracted.")
    std: ChannelDeviations = Field(description="Divided by.")

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise problem(
                "shape",
                "`mean` has {means} channels, `std` has {stds}",
                at="std",
                means=len(self.mean),
                stds=len(self.std),
            )
        return self


Validation = Annotated[int, Field(ge=0, le=2**31 - 1)] | Annotated[float, Field(gt=0, lt=1)]


class DataSpec(Section):
    """A data set, its split, and what happens to its images."""

    dataset: AnyPart = Field(description="Where images and labels come from.")
    validation: Validation = Field(
        0, description="Training images set aside: a number, or a fraction below 1; 0 is none."
    )
    split_seed: Seed = Field(0, description="Chooses the validation images; not train.seed.")
    preprocess: Annotated[tuple[PreprocessSpec, ...], Field(max_length=16, strict=False)] = Field(
        (), description="Done to every image, whatever it is for; stored with the weights."
    )
    augment: Annotated[tuple[AnyPart, ...], Field(max_length=32, strict=False)] = Field(
        (), description="Random changes to training images, in this order."
    )
    normalize: Auto | Normalize = Field(
        "auto", description="Statistics; `auto` takes the training images' own."
    )

    def set_aside(self, count: int) -> int:
        """Return how many of ``count`` training images are set aside for validation."""
        given = self.validation
        return given if isinstance(given, int) else round(given * count)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.split_seed != 0 and self.validation == 0:
            raise problem("no-effect", "has no effect without data.validation", at="split_seed")
        return self
