"""What a spec may say: frozen models of its sections, torch-free.

Open sets (blocks, shortcuts, stems, heads, norms, activations, attentions, datasets,
augmentations) are :class:`Part` here, a name and options that the builder checks against the
registries. Closed sets (initialisation, preprocessing, optimizer, schedule, loss) are unions
tagged by ``type``.
"""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.section import (
    DEVICE_PATTERN,
    PATH_PATTERN,
    AnyPart,
    Auto,
    Count,
    Fraction,
    Name,
    Part,
    Section,
    Seed,
    Side,
    Width,
    part_rule,
    problem,
)


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


_TORCHVISION = "torchvision:"


class WeightsSpec(Section):
    """First weights that are read instead of drawn."""

    short_key: ClassVar[str | None] = "path"

    path: Annotated[str, Field(pattern=PATH_PATTERN)] = Field(
        description="A file, relative to the one that names it; or torchvision's published "
        "weights, as `torchvision:ResNet50_Weights.IMAGENET1K_V2`."
    )
    new_head: bool = Field(
        False, description="Draw the classifier as usual, for classes other than the file's."
    )
    ema: bool = Field(False, description="Of a file that has both, the averaged weights.")

    @property
    def published_name(self) -> str | None:
        """What torchvision calls these weights, if they are torchvision's."""
        is_published = self.path.startswith(_TORCHVISION)
        return self.path.removeprefix(_TORCHVISION) if is_published else None

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.ema and self.published_name is not None:
            raise problem("no-effect", "has no effect on torchvision's weights", at="ema")
        return self


def is_file_name(path: str) -> bool:
    """Tell whether a path of weights is that of a file, and not torchvision's name for them."""
    return re.fullmatch(PATH_PATTERN, path) is not None and not path.startswith(_TORCHVISION)


def _path_rule(value: object) -> object:
    """Read a path alone as a mapping with nothing but `path`."""
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict | WeightsSpec):
        return value
    raise problem("wrong-type", "must be a path, or a mapping with `path`")


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
    antialias: Annotated[Part, part_rule("none")] = Field(
        Part(type="none"), description="What subsamples in place of strided convolutions."
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
    head: Annotated[Part, part_rule("auto")] = Field(
        Part(type="auto"),
        description="The layers after the last stage; `auto` is `linear`, or `preact_linear` after "
        "pre-activated blocks.",
    )
    weights: Annotated[WeightsSpec, BeforeValidator(_path_rule)] | None = Field(
        None, description="A file of weights to start from."
    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of what the network is fed, once the spec is resolved."""
        assert self.in_channels is not None, "the spec is resolved"
        assert self.image_size is not None, "the spec is resolved"
        return self.in_channels, self.image_size, self.image_size

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        blocks = sum(stage.blocks for stage in self.stages)
        if blocks > 2_000:
            raise problem(
                "limit", "{blocks} blocks are more than 2000 in all", at="stages", blocks=blocks
            )
        return self


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


class RunSpec(Section):
    """How to compute, not what: recorded with a run, but no part of the experiment."""

    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = Field(
        "auto", description="Where to compute; `auto` is CUDA, then MPS, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of training; `auto` is bf16 where the hardware computes it fast."
    )
    compile: Auto | bool = Field("auto", description="Whether torch.compile is used.")
    cpu_kernels: Auto | bool = Field(
        "auto",
        description="Whether a CPU computes with kernels of its own, faster than torch's.",
    )
    threads: Auto | Annotated[int, Field(ge=1, le=1_024)] = Field(
        "auto", description="CPU threads; `auto` is one for each core."
    )


class ExpectSpec(Section):
    """The spec's own test: what its network must count to."""

    parameters: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Numbers that are learnt."
    )
    depth: Count | None = Field(
        None, description="Convolutions on the residual path, plus stem and classifier."
    )
    macs: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Multiply-adds for one image."
    )


class PublishedSpec(Section):
    """What the source of an experiment reports, as fractions."""

    test_top1: Fraction | None = Field(None, description="Test images named right.")
    test_top5: Fraction | None = Field(None, description="Test images among the first five.")
    source: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="Paper and table."
    )


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = Field(1, description="Of this format.")
    name: Name = Field(description="What run directories are called; default: the file's.")
    plugins: Annotated[tuple[str, ...], Field(max_length=32, strict=False)] = Field(
        (), description="Files and modules with parts that the spec needs."
    )
    model: ModelSpec = Field(description="The network.")
    data: DataSpec | None = Field(None, description="What it is trained on.")
    train: TrainSpec | None = Field(None, description="How it is trained.")
    run: RunSpec = Field(RunSpec(), description="How it is computed.")
    expect: ExpectSpec | None = Field(None, description="What the network must count to.")
    published: PublishedSpec | None = Field(None, description="What the source reports.")


class SpecFile(Spec):
    """A spec as files have it: before its layers are merged."""

    extends: str | tuple[str, ...] = Field(
        (), description="What lies below: files or bundled names, the lowest first."
    )
