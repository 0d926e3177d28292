"""Schema of a spec: frozen pydantic models of its sections; ``train`` is in ``recipe``.

Open sets (blocks, shortcuts, stems, heads, norms, activations, attentions, datasets,
augmentations, losses, trackers) are :class:`Part` here, a name and options that the builder checks
against the registries. Closed sets (initialisation, preprocessing, optimizer, schedule) are unions
tagged by ``type``.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from resnet_builder.errors import SpecPath
from resnet_builder.spec.bundled import is_hub_name
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.section import (
    DEVICE_PATTERN,
    PATH_PATTERN,
    AnyPart,
    Auto,
    Count,
    Fraction,
    ImageSize,
    Name,
    Part,
    PartRule,
    Section,
    Seed,
    Side,
    Sides,
    Width,
    height_and_width,
    problem,
)


class StageSpec(Section):
    """A run of blocks of one width; only the first one strides."""

    channels: Width = Field(description="Inner width of the blocks, before their expansion.")
    blocks: Annotated[int, Field(ge=1, le=1_000)] = Field(description="Number of blocks.")
    stride: Annotated[int, Field(ge=1, le=8)] = Field(1, description="Stride of the first block.")
    dilation: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Dilation of the 3x3 convolutions; the first one has that of the stage before.",
    )
    block: AnyPart | None = Field(None, description="Block of this stage instead of the model's.")
    shortcut: AnyPart | None = Field(
        None, description="Shortcut of this stage instead of the model's."
    )
    attention: AnyPart | None = Field(
        None, description="Attention of this stage instead of the model's."
    )


class FanInit(Section):
    """Scaled by the number of inputs or outputs (He et al. 2015b; Glorot and Bengio 2010)."""

    type: Literal["kaiming_normal", "kaiming_uniform"]
    mode: Literal["fan_in", "fan_out"] = Field(
        "fan_out", description="Whether the number of inputs or of outputs scales."
    )


class XavierInit(Section):
    """Scaled by inputs and outputs together (Glorot and Bengio 2010)."""

    type: Literal["xavier_normal", "xavier_uniform"]


class NormalInit(Section):
    """One standard deviation for every convolution."""

    type: Literal["normal"]
    std: Annotated[float, Field(gt=0)] = Field(0.01, description="Standard deviation.")


class DefaultInit(Section):
    """PyTorch's own initialisation of each layer."""

    type: Literal["default"]


InitSpec = Annotated[
    FanInit | XavierInit | NormalInit | DefaultInit,
    Field(discriminator="type"),
    PartRule("kaiming_normal"),
]


_TORCHVISION = "torchvision:"
_HUB_NAME = re.compile(r"hf-hub:[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


class WeightsSpec(Section):
    """Pretrained weights."""

    path: Annotated[str, Field(pattern=PATH_PATTERN)] = Field(
        description="File, relative to the one that names it, or a folder that `publish` wrote; "
        "torchvision's published weights, as `torchvision:ResNet50_Weights.IMAGENET1K_V2`; or a "
        "repository of the Hugging Face Hub, as `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`."
    )
    new_head: bool = Field(
        False, description="Initialise the classifier anew, for other classes than the file's."
    )
    ema: bool = Field(False, description="Take the averaged weights of a file that has both.")
    adapt_channels: bool = Field(
        False,
        description="Adapt the first convolution to images of another number of channels: sum its "
        "weights for grey images, else repeat and scale them.",
    )

    @property
    def published_name(self) -> str | None:
        """Torchvision's name of these weights, if they are torchvision's."""
        is_published = self.path.startswith(_TORCHVISION)
        return self.path.removeprefix(_TORCHVISION) if is_published else None

    @property
    def is_on_hub(self) -> bool:
        """Whether these weights are in a repository of the Hugging Face Hub."""
        return is_hub_name(self.path)

    @model_validator(mode="after")
    def _is_named_right(self) -> Self:
        if self.is_on_hub and not _HUB_NAME.fullmatch(self.path):
            raise problem(
                "wrong-type", "must be `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`", at="path"
            )
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.ema and self.published_name is not None:
            raise problem("no-effect", "has no effect on torchvision's weights", at="ema")
        return self


def is_file_name(path: str) -> bool:
    """Tell whether a path is that of a file: no URL, and no name of torchvision's or the Hub's."""
    is_path = re.fullmatch(PATH_PATTERN, path) is not None
    is_name = path.startswith(_TORCHVISION) or is_hub_name(path)
    return is_path and not is_name and "://" not in path


def _path_rule(value: object) -> object:
    """Read a path alone as a mapping with nothing but `path`."""
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict | WeightsSpec):
        return value
    raise problem("wrong-type", "must be a path, or a mapping with `path`")


class ModelSpec(Section):
    """A network: stem, stages of blocks, head."""

    num_classes: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto", description="Number of classes; `auto` is the dataset's."
    )
    in_channels: Width | None = Field(
        None, description="Channels of an image; default: the dataset's, else 3."
    )
    image_size: ImageSize | None = Field(
        None, description="Pixels a side, or [height, width]; default: the dataset's, else 32."
    )
    stem: AnyPart = Field(description="Layers before the first stage.")
    block: AnyPart = Field(description="Block that the stages are made of.")
    shortcut: AnyPart = Field(description="Skip path of the blocks.")
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16, strict=False)] = (
        Field(description="Stages, from the stem to the head.")
    )
    norm: Annotated[Part, PartRule("batch_norm")] = Field(
        Part(type="batch_norm"), description="Normalisation after each convolution."
    )
    activation: Annotated[Part, PartRule("relu")] = Field(
        Part(type="relu"), description="Activation function."
    )
    attention: Annotated[Part, PartRule("none")] = Field(
        Part(type="none"), description="Attention on each block's residual."
    )
    antialias: Annotated[Part, PartRule("none")] = Field(
        Part(type="none"),
        description="Anti-aliasing filter, which subsamples in place of strided convolutions.",
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Stochastic depth: probability at the last block, linear from 0 at the first.",
    )
    init: InitSpec = Field(
        FanInit(type="kaiming_normal"), description="Initialisation of the convolutions."
    )
    zero_init_residual: bool = Field(
        False, description="Start every block as its shortcut (Goyal et al. 2017)."
    )
    head: Annotated[Part, PartRule("auto")] = Field(
        Part(type="auto"),
        description="Layers after the last stage; `auto` is `linear`, or `preact_linear` after "
        "pre-activated blocks.",
    )
    weights: Annotated[WeightsSpec, BeforeValidator(_path_rule)] | None = Field(
        None, description="Pretrained weights to start from."
    )

    @property
    def num_logits(self) -> int:
        """Number of the network's outputs, once the spec is resolved."""
        assert self.num_classes != "auto", "the spec is resolved"
        return self.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of the network's input, once the spec is resolved."""
        assert self.in_channels is not None, "the spec is resolved"
        assert self.image_size is not None, "the spec is resolved"
        return self.in_channels, *height_and_width(self.image_size)

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        blocks = sum(stage.blocks for stage in self.stages)
        if blocks > 2_000:
            raise problem(
                "limit", "{blocks} blocks in all are more than 2000", at="stages", blocks=blocks
            )
        return self


class Resize(Section):
    """Resize to ``size``: one number is the shorter side, with the proportions kept."""

    type: Literal["resize"]
    size: Side | Sides = Field(description="Pixels of the shorter side, or [height, width].")
    interpolation: Literal["nearest", "nearest_exact", "bilinear", "bicubic"] = Field(
        "bilinear", description="Interpolation, as torchvision's; always with antialiasing."
    )
    fit: Literal["auto", "stretch", "cover", "contain"] = Field(
        "auto",
        description="`stretch` gives exactly the size; `cover` and `contain` keep the proportions, "
        "and give at least, or at most, the size. `auto` is `cover` for one number, and "
        "`stretch` for two.",
    )
    crop_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Share of each side that a centre crop of `size` keeps afterwards, timm's "
        "crop_pct: sides are resized to size / crop_share, rounded down.",
    )

    @property
    def stretches(self) -> bool:
        """Whether images of any proportions become exactly as large."""
        return self.fit == "stretch" or (self.fit == "auto" and not isinstance(self.size, int))


class CenterCrop(Section):
    """Cut the middle ``size``, padding smaller images with zeros."""

    type: Literal["center_crop"]
    size: ImageSize = Field(description="Pixels a side, or [height, width].")


class Pad(Section):
    """Pad to ``size``, as much on each side; an odd pixel goes to the bottom and to the right."""

    type: Literal["pad"]
    size: ImageSize = Field(description="Pixels a side, or [height, width].")
    fill: Annotated[int, Field(ge=0, le=255)] = Field(
        0, description="Value of the new pixels in every channel, with `mode: constant`."
    )
    mode: Literal["constant", "edge", "reflect"] = Field(
        "constant",
        description="Kind of padding: one value, the pixels at the edge, or the image reflected "
        "there.",
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.fill != 0 and self.mode != "constant":
            raise problem("no-effect", "has no effect without `mode: constant`", at="fill")
        return self


class ToRgb(Section):
    """Repeat the one channel of a grey image three times; drop a fourth channel, alpha."""

    type: Literal["to_rgb"]


PreprocessSpec = Annotated[
    Resize | CenterCrop | Pad | ToRgb, Field(discriminator="type"), PartRule()
]

_CHANNELS = Field(min_length=1, max_length=16_384, strict=False)
ChannelMeans = Annotated[tuple[Fraction, ...], _CHANNELS]
Deviation = Annotated[float, Field(gt=0, le=1)]
ChannelDeviations = Annotated[tuple[Deviation, ...], _CHANNELS]


class Normalize(Section):
    """Mean and standard deviation of each channel, in units where white is 1."""

    mean: ChannelMeans = Field(description="Mean of each channel, subtracted.")
    std: ChannelDeviations = Field(description="Standard deviation of each channel, divided by.")

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
    """A dataset, its split, and what happens to its images."""

    dataset: AnyPart = Field(description="Dataset.")
    validation: Auto | Validation = Field(
        "auto",
        description="Training images held out: a number, or a fraction below 1; 0 is none; `auto` "
        "is what suits the dataset: a tenth of images of your own without a validation split.",
    )
    split_seed: Seed = Field(
        0, description="Seed that chooses the validation images; not train.seed."
    )
    preprocess: Annotated[tuple[PreprocessSpec, ...], Field(max_length=16, strict=False)] | None = (
        Field(
            None,
            description="Changes to all images, training or not; stored with the weights; default: "
            "`resize` and `center_crop` to the network's size, where images may differ in size.",
        )
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="Training images of an epoch: each once, in a new order (`uniform`); or each "
        "class equally likely, so that images of rare classes repeat (`balanced`).",
    )
    augment: Annotated[tuple[AnyPart, ...], Field(max_length=32, strict=False)] = Field(
        (), description="Random changes to training images, in this order."
    )
    normalize: Auto | Normalize = Field(
        "auto", description="Mean and standard deviation; `auto` takes the training images' own."
    )

    def set_aside(self, count: int) -> int:
        """Number of validation images out of ``count`` training images, of a resolved spec."""
        given = self.validation
        assert given != "auto", "the spec is resolved"
        return given if isinstance(given, int) else round(given * count)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.split_seed != 0 and self.validation == 0:
            raise problem("no-effect", "has no effect without data.validation", at="split_seed")
        return self


class RunSpec(Section):
    """Device, precision and the like: recorded with a run, but no part of the experiment."""

    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = Field(
        "auto", description="Device; `auto` is CUDA, then MPS, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of training; `auto` is bf16 where the hardware is fast at it.",
    )
    compile: Auto | bool = Field(
        "auto", description="Whether torch.compile is used; `auto` is on CUDA only."
    )
    cpu_kernels: Auto | bool = Field(
        "auto",
        description="Whether the package's own CPU kernels, faster than torch's, are used.",
    )
    threads: Auto | Annotated[int, Field(ge=1, le=1_024)] = Field(
        "auto", description="CPU threads; `auto` is one for each core."
    )
    log: Annotated[tuple[AnyPart, ...], Field(max_length=8, strict=False)] = Field(
        (), description="Trackers that metrics are logged to, beside `metrics.jsonl`."
    )
    report: bool = Field(
        True, description="Whether a training ends with `report.html` in the run directory."
    )


class ExpectSpec(Section):
    """The spec's own test: expected counts of its network."""

    parameters: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Learnt parameters."
    )
    depth: Count | None = Field(
        None, description="Convolutions on the residual path, plus stem and classifier."
    )
    macs: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Multiply-adds for one image."
    )


class PublishedSpec(Section):
    """Published result of an experiment, as fractions."""

    test_top1: Fraction | None = Field(None, description="Top-1 accuracy on the test images.")
    test_top5: Fraction | None = Field(None, description="Top-5 accuracy on the test images.")
    source: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="Paper and table."
    )


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = Field(1, description="Version of this format.")
    name: Name = Field(description="Name of the spec and its runs; default: the file's.")
    plugins: Annotated[tuple[str, ...], Field(max_length=32, strict=False)] = Field(
        (), description="Plugins: files and modules with parts that the spec needs."
    )
    model: ModelSpec = Field(description="The network.")
    data: DataSpec | None = Field(None, description="The data.")
    train: TrainSpec | None = Field(None, description="The recipe.")
    run: RunSpec = Field(RunSpec(), description="Device, precision and the like.")
    expect: ExpectSpec | None = Field(None, description="Expected counts.")
    published: PublishedSpec | None = Field(None, description="Published result.")


class SpecFile(Spec):
    """A spec as files have it: before composition."""

    extends: str | tuple[str, ...] = Field(
        (), description="Specs that this file changes: files or bundled names; later ones win."
    )


def models_at(path: SpecPath) -> tuple[type[BaseModel], ...]:
    """Models of which a value at ``path`` can be: sections, or :class:`Part`."""
    admitted: tuple[Any, ...] = (Spec,)
    for step in path:
        admitted = tuple(found for one in admitted for found in _admitted_below(one, step))
    return tuple(one for one in admitted if isinstance(one, type) and issubclass(one, BaseModel))


def short_key(path: SpecPath) -> str | None:
    """Key that a scalar at ``path`` stands for, as a part's name does for ``type``."""
    for model in models_at(path):
        if "type" in model.model_fields:
            return "type"
        if model is WeightsSpec:
            return "path"
    return None


def parts_in(
    data: object, admitted: tuple[Any, ...] = (Spec,), path: SpecPath = ()
) -> Iterator[tuple[SpecPath, Part]]:
    """Parts that the plain data of a spec name, with their paths.

    What cannot be read as a part is left out, so that wrong values hide no part beside them.

    Args:
        data: The spec, or some of its sections.
        admitted: Annotations of the values that may stand at ``path``.
        path: Place of the data in the spec.
    """
    if Part in admitted:
        with suppress(ValidationError):
            yield path, Part.model_validate({"type": data} if isinstance(data, str) else data)
        return
    items = data.items() if isinstance(data, dict) else ()
    for step, value in enumerate(data) if isinstance(data, list) else items:
        below = tuple(found for one in admitted for found in _admitted_below(one, step))
        fields = (getattr(one, "model_fields", {}).get(step) for one in admitted)
        default = next((field.default for field in fields if field is not None), None)
        if isinstance(value, dict) and isinstance(default, Part):
            value = {"type": default.type, **value}
        if below:
            yield from parts_in(value, below, (*path, step))


def _admitted_below(annotation: Any, step: str | int) -> tuple[Any, ...]:
    if isinstance(step, int):
        is_list = get_origin(annotation) is tuple
        return _admitted(get_args(annotation)[0]) if is_list else ()
    fields = getattr(annotation, "model_fields", {})
    return _admitted(fields[step].annotation) if step in fields else ()


def _admitted(annotation: Any) -> tuple[Any, ...]:
    """Take unions and metadata apart."""
    if get_origin(annotation) is Annotated:
        return _admitted(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return tuple(found for one in get_args(annotation) for found in _admitted(one))
    return (annotation,)
