"""What a spec may say: frozen models of every section, torch-free.

Open sets (blocks, shortcuts, stems, heads, norms, activations, attentions, datasets,
augmentations) are :class:`Part` here, a name and options that the builder checks against the
registries. Closed sets (initialisation, preprocessing, optimizer, schedule, loss) are unions
tagged by ``type``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PART_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"

# Windows cannot make files of these names, with or without an ending.
_RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Side = Annotated[int, Field(ge=1, le=4_096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Section(BaseModel):
    """Base of every part of a spec: unknown keys are errors and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Part(BaseModel):
    """A registered part: its name and the options given to it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: Annotated[str, Field(pattern=PART_PATTERN)]

    @property
    def options(self) -> dict[str, Any]:
        """The options, as plain data."""
        return dict(self.model_extra or {})


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
        raise PydanticCustomError("wrong-type", "must be a name, or a mapping with `type`")

    return BeforeValidator(expand)


AnyPart = Annotated[Part, part_rule()]


class StageSpec(Section):
    """A run of blocks of one width; only the first one strides."""

    channels: Width = Field(description="Inner width; the block's expansion comes on top.")
    blocks: Annotated[int, Field(ge=1, le=1_000)]
    stride: Annotated[int, Field(ge=1, le=8)] = 1
    block: AnyPart | None = Field(None, description="Overrides the model's block in this stage.")
    shortcut: AnyPart | None = None
    attention: AnyPart | None = None


class FanInit(Section):
    """Scaled by the number of inputs or outputs (He et al. 2015b; Glorot and Bengio 2010)."""

    type: Literal["kaiming_normal", "kaiming_uniform"]
    mode: Literal["fan_in", "fan_out"] = "fan_out"


class XavierInit(Section):
    """Scaled by inputs and outputs together (Glorot and Bengio 2010)."""

    type: Literal["xavier_normal", "xavier_uniform"]


class NormalInit(Section):
    """One deviation for every convolution."""

    type: Literal["normal"]
    std: Annotated[float, Field(gt=0)] = 0.01


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

    num_classes: Annotated[int, Field(ge=1, le=1_000_000)]
    in_channels: Width | None = Field(None, description="Default: the dataset's, else 3.")
    image_size: Side | None = Field(None, description="Default: the dataset's, else 32.")
    stem: AnyPart
    block: AnyPart
    shortcut: AnyPart
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16, strict=False)]
    norm: Annotated[Part, part_rule("batch_norm")] = Part(type="batch_norm")
    activation: Annotated[Part, part_rule("relu")] = Part(type="relu")
    attention: Annotated[Part, part_rule("none")] = Part(type="none")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Probability at the last block; linear from 0 at the first."
    )
    init: InitSpec = FanInit(type="kaiming_normal")
    zero_init_residual: bool = False
    head: Annotated[Part, part_rule("linear")] = Part(type="linear")

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        blocks = sum(stage.blocks for stage in self.stages)
        if blocks > 2_000:
            raise PydanticCustomError(
                "limit", "stages have {n} blocks, at most 2000", {"n": blocks}
            )
        return self


class Resize(Section):
    """Resize the shorter side to ``size``, keeping the proportions."""

    type: Literal["resize"]
    size: Side


class CenterCrop(Section):
    """Cut the middle ``size`` x ``size`` pixels, padding smaller images with zeros."""

    type: Literal["center_crop"]
    size: Side


class ToRgb(Section):
    """Repeat the one channel of a grey image three times; leave three channels as they are."""

    type: Literal["to_rgb"]


PreprocessSpec = Annotated[Resize | CenterCrop | ToRgb, Field(discriminator="type"), part_rule()]

ChannelMeans = Annotated[tuple[Fraction, ...], Field(min_length=1, strict=False)]
Deviation = Annotated[float, Field(gt=0, le=1)]
ChannelDeviations = Annotated[tuple[Deviation, ...], Field(min_length=1, strict=False)]


class Normalize(Section):
    """Mean and standard deviation of each channel, in units where white is 1."""

    mean: ChannelMeans
    std: ChannelDeviations

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise PydanticCustomError(
                "shape",
                "mean has {means} channels and std has {stds}",
                {"means": len(self.mean), "stds": len(self.std)},
            )
        return self


def _auto_or_normalize(value: object) -> object:
    if value == "auto" or isinstance(value, dict | Normalize):
        return value
    raise PydanticCustomError("wrong-type", "must be `auto`, or a mapping with `mean` and `std`")


class DataSpec(Section):
    """A data set, its split, and what happens to its images."""

    dataset: AnyPart
    validation: int | float = Field(
        0, description="Training images set aside: a number, or a fraction below 1; 0 is none."
    )
    split_seed: Seed = Field(0, description="Chooses the validation images; not train.seed.")
    preprocess: Annotated[tuple[PreprocessSpec, ...], Field(max_length=16, strict=False)] = ()
    augment: Annotated[tuple[AnyPart, ...], Field(max_length=32, strict=False)] = ()
    normalize: Annotated[Literal["auto"] | Normalize, BeforeValidator(_auto_or_normalize)] = "auto"

    @field_validator("validation", mode="plain")
    @classmethod
    def _validation_amount(cls, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PydanticCustomError("wrong-type", "must be a number of images, or a fraction")
        if (isinstance(value, int) and 0 <= value < 2**31) or 0 < value < 1:
            return value
        raise PydanticCustomError(
            "out-of-range", "must be a whole number from 0, or a fraction between 0 and 1"
        )

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.split_seed != 0 and self.validation == 0:
            raise PydanticCustomError(
                "no-effect", "`split_seed` has no effect without `validation`"
            )
        return self


Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Sgd(Section):
    """Stochastic gradient descent, plain or Nesterov's."""

    type: Literal["sgd"]
    lr: Rate
    momentum: Momentum = 0.9
    weight_decay: Decay = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("no-effect", "`nesterov` has no effect without `momentum`")
        return self


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"]
    lr: Rate
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.01


OptimizerSpec = Annotated[Sgd | AdamW, Field(discriminator="type"), part_rule()]

Unit = Literal["steps", "epochs"]


def _exactly_one(section: Section, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) > 1:
        raise PydanticCustomError(
            "exclusive", "give only one of {keys}", {"keys": ", ".join(f"`{k}`" for k in given)}
        )
    if not given:
        raise PydanticCustomError(
            "missing-key", "give one of {keys}", {"keys": ", ".join(f"`{k}`" for k in keys)}
        )


class Duration(Section):
    """A length, in steps or in epochs."""

    steps: Count | None = None
    epochs: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _exactly_one(self, ("steps", "epochs"))
        return self


class Interval(Section):
    """Every so many steps, epochs or seconds."""

    steps: Count | None = None
    epochs: Count | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _exactly_one(self, ("steps", "epochs", "seconds"))
        return self


class ConstantWarmup(Duration):
    """A lower, constant rate first."""

    type: Literal["constant"]
    lr: Rate


class LinearWarmup(Duration):
    """A rate that rises in equal steps from ``start`` to the optimizer's."""

    type: Literal["linear"]
    start: Annotated[float, Field(ge=0)] = 0.0


WarmupSpec = Annotated[
    ConstantWarmup | LinearWarmup, Field(discriminator="type"), part_rule("linear")
]


class Warmed(Section):
    """Base of the schedules that a warm-up can come before."""

    warmup: WarmupSpec | None = None


class ConstantSchedule(Warmed):
    """The optimizer's rate throughout."""

    type: Literal["constant"]


class MultistepSchedule(Warmed):
    """The rate times ``gamma`` at each milestone."""

    type: Literal["multistep"]
    milestones: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64, strict=False)]
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    unit: Unit | None = Field(None, description="Of the milestones; default: the recipe's own.")

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise PydanticCustomError("out-of-range", "`milestones` must ascend")
        return self


class CosineSchedule(Warmed):
    """Half a cosine from the optimizer's rate to ``end`` (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"]
    end: Annotated[float, Field(ge=0)] = 0.0


class LinearSchedule(Warmed):
    """A straight line from the optimizer's rate to ``end``."""

    type: Literal["linear"]
    end: Annotated[float, Field(ge=0)] = 0.0


class OneCycleSchedule(Section):
    """Up to the optimizer's rate, then down (Smith and Topin 2018), as PyTorch's OneCycleLR."""

    type: Literal["one_cycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="Fraction of the steps that the rate rises for."
    )
    anneal: Literal["cos", "linear"] = "cos"
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
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


LossSpec = Annotated[CrossEntropy, part_rule("cross_entropy")]


class EmaSpec(Section):
    """An exponential moving average of the weights, which is then what is evaluated."""

    decay: Annotated[float, Field(gt=0, lt=1)]
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
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ConstantSchedule(type="constant")
    loss: LossSpec = CrossEntropy(type="cross_entropy")
    seed: Seed = 0
    spare_norm_and_bias: bool = Field(False, description="From weight decay.")
    ema: EmaSpec | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the whole gradient."
    )
    accumulate: Count = Field(1, description="Parts that a batch is computed in.")
    evaluate_every: Interval = Interval(epochs=1)
    checkpoint_every: Interval = Interval(seconds=300.0)
    keep: Annotated[int, Field(ge=2, le=1_000)] = Field(2, description="Checkpoints kept.")
    early_stop: EarlyStopSpec | None = None

    @property
    def unit(self) -> Unit:
        """What the recipe's length is given in."""
        return "steps" if self.steps is not None else "epochs"

    @field_validator("evaluate_every")
    @classmethod
    def _reproducible(cls, value: Interval) -> Interval:
        if value.seconds is not None:
            raise PydanticCustomError(
                "exclusive", "must be in steps or epochs: by the clock, no run repeats another"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size % self.accumulate:
            raise PydanticCustomError(
                "out-of-range",
                "`batch_size` {batch} is not divisible by `accumulate` {parts}",
                {"batch": self.batch_size, "parts": self.accumulate},
            )
        if self.spare_norm_and_bias and self.optimizer.weight_decay == 0:
            raise PydanticCustomError(
                "no-effect", "`spare_norm_and_bias` has no effect without `weight_decay`"
            )
        self._schedule_ends_in_time()
        return self

    def _schedule_ends_in_time(self) -> None:
        """Check what needs no data: lengths in the recipe's own unit."""
        length = self.steps or self.epochs or 0
        schedule = self.schedule
        warmup = getattr(schedule, "warmup", None)
        if warmup is not None and (getattr(warmup, self.unit) or 0) >= length:
            raise PydanticCustomError(
                "out-of-range", "the warm-up is as long as the training or longer"
            )
        if isinstance(schedule, MultistepSchedule) and schedule.unit in {None, self.unit}:
            last = schedule.milestones[-1]
            if last >= length:
                raise PydanticCustomError(
                    "out-of-range",
                    "milestone {last} is beyond the end, {length} {unit}",
                    {"last": last, "length": length, "unit": self.unit},
                )


def _auto_or(kind: type, what: str) -> BeforeValidator:
    """Accept ``auto`` or a value of one kind, with one message for anything else."""

    def accept(value: object) -> object:
        if value == "auto" or type(value) is kind:
            return value
        raise PydanticCustomError("wrong-type", "must be `auto` or {what}", {"what": what})

    return BeforeValidator(accept)


class RunSpec(Section):
    """How to compute, not what: recorded with a run, but no part of the experiment."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Annotated[Literal["auto"] | bool, _auto_or(bool, "true or false")] = "auto"
    threads: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1_024)], _auto_or(int, "a whole number")
    ] = "auto"


class ExpectSpec(Section):
    """The spec's own test: what its network must count to."""

    parameters: Annotated[int, Field(ge=1)] | None = None
    depth: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None


class PublishedSpec(Section):
    """What the source of an experiment reports, as fractions."""

    test_top1: Fraction | None = None
    test_top5: Fraction | None = None
    source: Annotated[str, Field(min_length=1, max_length=500)]


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    plugins: Annotated[tuple[str, ...], Field(max_length=32, strict=False)] = ()
    model: ModelSpec
    data: DataSpec | None = None
    train: TrainSpec | None = None
    run: RunSpec = RunSpec()
    expect: ExpectSpec | None = None
    published: PublishedSpec | None = None

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, value: str) -> str:
        if value.split(".")[0].lower() in _RESERVED_NAMES:
            raise PydanticCustomError("out-of-range", "Windows cannot make files of this name")
        return value
