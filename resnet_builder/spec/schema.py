"""What a spec may say: frozen models of every section, torch-free.

Open sets (blocks, shortcuts, stems, heads, norms, activations, attentions, datasets,
augmentations) are :class:`Part` here, a name and options that the builder checks against the
registries. Closed sets (initialisation, preprocessing, optimizer, schedule, loss) are unions
tagged by ``type``. What a validator here raises is a problem with its code; ``at`` names the key
to point at.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PART_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$"

PATTERN_WORDS = {
    NAME_PATTERN: "at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit",
    PART_PATTERN: "at most 64 letters, digits and `_`, the first a letter",
    DEVICE_PATTERN: "auto, cpu, mps, cuda or cuda:N",
}
"""What each pattern says, in words."""

# Windows cannot make files of these names, with or without an ending.
_RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Side = Annotated[int, Field(ge=1, le=4_096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Auto = Literal["auto"]


def is_name(text: str) -> bool:
    """Tell whether a spec can be called this."""
    return re.fullmatch(NAME_PATTERN, text) is not None and not _is_reserved(text)


def _is_reserved(text: str) -> bool:
    return text.split(".")[0].lower() in _RESERVED_NAMES


def _is_a_file_name(value: str) -> str:
    if _is_reserved(value):
        raise _problem("out-of-range", "Windows cannot make files called '{name}'", name=value)
    return value


Name = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_is_a_file_name)]


def _problem(
    code: str, message: str, *, at: str | None = None, **context: object
) -> PydanticCustomError:
    """Make an error with one of our codes; ``at`` is the key of the section to point at."""
    return PydanticCustomError(code, message, {"at": at, **context})


class Section(BaseModel):
    """Base of every part of a spec: unknown keys are errors and values never change.

    A key whose value is null is as good as absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None or k not in cls.model_fields}


class Part(BaseModel):
    """A registered part: its name and the options given to it, lists among them as tuples."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: Annotated[str, Field(pattern=PART_PATTERN, description="A registered name.")]

    @model_validator(mode="before")
    @classmethod
    def _holds_no_lists(cls, value: object) -> object:
        return _without_lists(value)

    @property
    def options(self) -> dict[str, Any]:
        """The options, as plain data."""
        return dict(self.model_extra or {})


def _without_lists(value: object) -> object:
    """Make tuples of the lists inside plain data: a frozen model holds nothing that changes."""
    if isinstance(value, list | tuple):
        return tuple(_without_lists(item) for item in value)
    if isinstance(value, dict):
        return {key: _without_lists(item) for key, item in value.items()}
    return value


def part_rule(default: str | None = None) -> BeforeValidator:
    """Make the rule that holds wherever a part stands: a name, or a mapping with ``type``.

    Args:
        default: The type of a mapping without one, which then changes options of the default.
    """

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            return value if "type" in value or default is None else {"type": default, **value}
        if isinstance(value, BaseModel):
            return value
        raise _problem("wrong-type", "must be a name, or a mapping with `type`")

    return BeforeValidator(expand)


AnyPart = Annotated[Part, part_rule()]


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
            raise _problem(
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
            raise _problem(
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

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.split_seed != 0 and self.validation == 0:
            raise _problem("no-effect", "has no effect without data.validation", at="split_seed")
        return self


Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Sgd(Section):
    """Stochastic gradient descent, plain or Nesterov's."""

    type: Literal["sgd"]
    lr: Rate = Field(description="The rate that the schedule multiplies.")
    momentum: Momentum = Field(0.9, description="Kept of the last update.")
    weight_decay: Decay = Field(0.0, description="Of the weights, added to the gradient.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise _problem("no-effect", "has no effect without momentum", at="nesterov")
        return self


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"]
    lr: Rate = Field(description="The rate that the schedule multiplies.")
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = Field(
        (0.9, 0.999), description="Kept of the first and second moments."
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Added to the divisor.")
    weight_decay: Decay = Field(0.01, description="Of the weights, beside the gradient.")


OptimizerSpec = Annotated[Sgd | AdamW, Field(discriminator="type"), part_rule()]

Unit = Literal["steps", "epochs"]


def _exactly_one(section: Section, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        names = ", ".join(f"`{key}`" for key in given or keys)
        raise (
            _problem("exclusive", "give only one of {names}", at=given[-1], names=names)
            if given
            else _problem("missing-key", "give one of {names}", names=names)
        )


class Duration(Section):
    """A length, in steps or in epochs."""

    steps: Count | None = Field(None, description="In optimizer steps.")
    epochs: Count | None = Field(None, description="In passes over the training images.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _exactly_one(self, ("steps", "epochs"))
        return self


class Interval(Section):
    """Every so many steps, epochs or seconds."""

    steps: Count | None = Field(None, description="In optimizer steps.")
    epochs: Count | None = Field(None, description="In passes over the training images.")
    seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="By the clock.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _exactly_one(self, ("steps", "epochs", "seconds"))
        return self


class ConstantWarmup(Duration):
    """A lower, constant rate first."""

    type: Literal["constant"]
    lr: Rate = Field(description="The rate until then.")


class LinearWarmup(Duration):
    """A rate that rises in equal steps to the optimizer's."""

    type: Literal["linear"]
    start: Annotated[float, Field(ge=0)] = Field(0.0, description="The first rate.")


WarmupSpec = Annotated[
    ConstantWarmup | LinearWarmup, Field(discriminator="type"), part_rule("linear")
]


class Warmed(Section):
    """Base of the schedules that a warm-up can come before."""

    warmup: WarmupSpec | None = Field(None, description="What comes before the schedule.")


class ConstantSchedule(Warmed):
    """The optimizer's rate throughout."""

    type: Literal["constant"]


class MultistepSchedule(Warmed):
    """The rate times ``gamma`` at each milestone."""

    type: Literal["multistep"]
    milestones: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64, strict=False)] = (
        Field(description="When the rate changes, counted from the start of training.")
    )
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="The factor.")
    unit: Unit | None = Field(None, description="Of the milestones; default: the recipe's own.")

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise _problem("out-of-range", "must ascend", at="milestones")
        return self


class CosineSchedule(Warmed):
    """Half a cosine from the optimizer's rate to ``end`` (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"]
    end: Annotated[float, Field(ge=0)] = Field(0.0, description="The last rate.")


class LinearSchedule(Warmed):
    """A straight line from the optimizer's rate to ``end``."""

    type: Literal["linear"]
    end: Annotated[float, Field(ge=0)] = Field(0.0, description="The last rate.")


class OneCycleSchedule(Section):
    """Up to the optimizer's rate, then down (Smith and Topin 2018), as PyTorch's OneCycleLR."""

    type: Literal["one_cycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="Fraction of the steps that the rate rises for."
    )
    anneal: Literal["cos", "linear"] = Field("cos", description="The shape of both slopes.")
    div_factor: Annotated[float, Field(ge=1)] = Field(
        25.0, description="First rate: the optimizer's over this."
    )
    final_div_factor: Annotated[float, Field(ge=1)] = Field(
        1e4, description="Last rate: the first over this."
    )


ScheduleSpec = Annotated[
    ConstantSchedule | MultistepSchedule | CosineSchedule | LinearSchedule | OneCycleSchedule,
    Field(discriminator="type"),
    part_rule(),
]


class CrossEntropy(Section):
    """Cross entropy, of smoothed labels if asked for (Szegedy et al. 2016)."""

    type: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Shared out among all classes."
    )


LossSpec = Annotated[CrossEntropy, part_rule("cross_entropy")]


class EmaSpec(Section):
    """An exponential moving average of the weights, which is then what is evaluated."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(description="Kept at each update.")
    every: Count = Field(1, description="Steps between updates.")


class EarlyStopSpec(Section):
    """Stop when validation top-1 has not risen for a while."""

    patience: Count = Field(description="Evaluations without a rise.")
    min_delta: Fraction = Field(0.0, description="The smallest rise that counts.")


class TrainSpec(Duration):
    """A recipe."""

    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        description="Images per optimizer step, over all processes."
    )
    optimizer: OptimizerSpec = Field(description="What makes updates of gradients.")
    schedule: ScheduleSpec = Field(
        ConstantSchedule(type="constant"), description="The rate at each step."
    )
    loss: LossSpec = Field(CrossEntropy(type="cross_entropy"), description="What is minimised.")
    seed: Seed = Field(0, description="Of first weights, order, augmentation and dropout.")
    spare_norm_and_bias: bool = Field(
        False, description="No weight decay for normalisation layers and biases."
    )
    ema: EmaSpec | None = Field(None, description="A moving average of the weights.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the whole gradient."
    )
    accumulate: Count = Field(1, description="Parts that a batch is computed in.")
    evaluate_every: Interval = Field(
        Interval(epochs=1), description="When the validation images are evaluated."
    )
    checkpoint_every: Interval = Field(
        Interval(seconds=300.0), description="When all that resuming needs is saved."
    )
    keep: Annotated[int, Field(ge=2, le=1_000)] = Field(2, description="Checkpoints kept.")
    early_stop: EarlyStopSpec | None = Field(None, description="When to give up.")

    @property
    def unit(self) -> Unit:
        """What the recipe's length is given in."""
        return "steps" if self.steps is not None else "epochs"

    @field_validator("evaluate_every")
    @classmethod
    def _reproducible(cls, value: Interval) -> Interval:
        if value.seconds is not None:
            raise _problem(
                "exclusive",
                "give `steps` or `epochs`: by the clock, no run repeats another",
                at="seconds",
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size % self.accumulate:
            raise _problem(
                "out-of-range",
                "a batch of {batch} cannot be computed in {parts} equal parts",
                at="accumulate",
                batch=self.batch_size,
                parts=self.accumulate,
            )
        if self.spare_norm_and_bias and self.optimizer.weight_decay == 0:
            raise _problem(
                "no-effect", "has no effect without weight_decay", at="spare_norm_and_bias"
            )
        self._schedule_ends_in_time()
        return self

    def _schedule_ends_in_time(self) -> None:
        """Check what needs no data: lengths in the recipe's own unit."""
        length = self.steps or self.epochs or 0
        schedule = self.schedule
        warmup = getattr(schedule, "warmup", None)
        if warmup is not None and (getattr(warmup, self.unit) or 0) >= length:
            raise _problem(
                "out-of-range",
                "the warm-up lasts as long as the training, {length} {unit}, or longer",
                at="schedule.warmup",
                length=length,
                unit=self.unit,
            )
        if isinstance(schedule, MultistepSchedule) and schedule.unit in {None, self.unit}:
            last = schedule.milestones[-1]
            if last >= length:
                raise _problem(
                    "out-of-range",
                    "milestone {last} is not before the end, {length} {unit}",
                    at="schedule.milestones",
                    last=last,
                    length=length,
                    unit=self.unit,
                )


class RunSpec(Section):
    """How to compute, not what: recorded with a run, but no part of the experiment."""

    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = Field(
        "auto", description="Where to compute; `auto` is CUDA, then MPS, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of training; `auto` is bf16 where the hardware computes it fast."
    )
    compile: Auto | bool = Field("auto", description="Whether torch.compile is used.")
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
