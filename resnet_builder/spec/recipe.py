"""Schema of the ``train`` section: optimizer, schedule, loss, and all else of a recipe."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from resnet_builder.spec.section import Count, Fraction, Part, PartRule, Section, Seed, problem

# A smaller rate changes no fp32 weight of an ordinary size: these have 7 digits.
Rate = Annotated[float, Field(ge=1e-12)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Sgd(Section):
    """Stochastic gradient descent, plain or Nesterov's."""

    type: Literal["sgd"]
    lr: Rate = Field(description="Learning rate that the schedule multiplies.")
    momentum: Momentum = Field(0.9, description="Momentum.")
    weight_decay: Decay = Field(0.0, description="L2 penalty, added to the gradient.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise problem("no-effect", "has no effect without momentum", at="nesterov")
        return self


Betas = Annotated[
    tuple[Momentum, Momentum],
    Field(strict=False, description="Decay of the first and second moments."),
]
Epsilon = Annotated[float, Field(gt=0, le=1, description="Constant added to the divisor.")]


class Adam(Section):
    """Adam (Kingma and Ba 2015)."""

    type: Literal["adam"]
    lr: Rate = Field(description="Learning rate that the schedule multiplies.")
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: Decay = Field(0.0, description="L2 penalty, added to the gradient.")


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"]
    lr: Rate = Field(description="Learning rate that the schedule multiplies.")
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: Decay = Field(0.01, description="Decoupled weight decay.")


class Muon(Section):
    """Orthogonal updates of the stages' convolutions (Jordan et al. 2024), SGD for all else."""

    type: Literal["muon"]
    lr: Rate = Field(
        description="Learning rate of the stages' convolutions; the schedule multiplies it."
    )
    momentum: Momentum = Field(
        0.95, description="Momentum of the stages' convolutions; Nesterov's."
    )
    weight_decay: Decay = Field(
        0.0, description="Decoupled weight decay of the stages' convolutions."
    )
    aux: Annotated[Sgd, PartRule("sgd")] = Field(
        Sgd(type="sgd", lr=0.1, nesterov=True),
        description="SGD for the stem, the head, norms and biases, at the same schedule.",
    )


OptimizerSpec = Annotated[Sgd | Adam | AdamW | Muon, Field(discriminator="type"), PartRule()]

Unit = Literal["steps", "epochs"]
Epochs = Count | Annotated[float, Field(gt=0, le=2**31 - 1)]
"""Number of epochs, which may have a fraction."""


class Duration(Section):
    """A length, in steps or in epochs.

    Attributes:
        units: Keys of which exactly one is given.
    """

    units: ClassVar[tuple[str, ...]] = ("steps", "epochs")

    steps: Count | None = Field(None, description="Number of optimizer steps.")
    epochs: Epochs | None = Field(None, description="Number of passes over the training images.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [key for key in self.units if getattr(self, key) is not None]
        names = ", ".join(f"`{key}`" for key in given or self.units)
        if not given:
            raise problem("missing-key", "give one of {names}", names=names)
        if len(given) > 1:
            raise problem("exclusive", "give only one of {names}", at=given[-1], names=names)
        return self

    def in_steps(self, steps_per_epoch: int) -> int:
        """Length in steps, of one that is not in seconds."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "a length is given in one unit"
        return max(1, round(self.epochs * steps_per_epoch))


class Interval(Duration):
    """Every so many steps, epochs or seconds."""

    units = ("steps", "epochs", "seconds")

    seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="Number of seconds.")


class ConstantWarmup(Duration):
    """A lower, constant learning rate first."""

    type: Literal["constant"]
    lr: Rate = Field(description="Learning rate of the warm-up, below the optimizer's.")


class LinearWarmup(Duration):
    """A learning rate that rises in equal steps to the optimizer's."""

    type: Literal["linear"]
    start: Annotated[float, Field(ge=0)] = Field(
        0.0, description="First learning rate, below the optimizer's."
    )


WarmupSpec = Annotated[
    ConstantWarmup | LinearWarmup, Field(discriminator="type"), PartRule("linear")
]


class _WarmedUp(Section):
    """Base of the schedules that a warm-up can come before."""

    warmup: WarmupSpec | None = Field(None, description="Warm-up before the schedule.")


class ConstantSchedule(_WarmedUp):
    """The optimizer's learning rate throughout."""

    type: Literal["constant"]


class MultistepSchedule(_WarmedUp):
    """The learning rate times ``gamma`` at each milestone."""

    type: Literal["multistep"]
    milestones: Annotated[tuple[Epochs, ...], Field(min_length=1, max_length=64, strict=False)] = (
        Field(description="Milestones, counted from the start of training.")
    )
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="Factor at each milestone.")
    unit: Unit | None = Field(
        None, description="Unit of the milestones; default: the recipe's own."
    )

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise problem("out-of-range", "must increase from one to the next", at="milestones")
        return self


class StepSchedule(_WarmedUp):
    """The learning rate times ``gamma`` again and again, at equal intervals, as StepLR."""

    type: Literal["step"]
    every: Duration = Field(
        description="Length between two falls, counted from the start of training."
    )
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="Factor at each fall.")


class ExponentialSchedule(_WarmedUp):
    """The learning rate times ``gamma`` in each interval, a little at every step, as ExponentialLR.

    The intervals are counted from the end of the warm-up.
    """

    type: Literal["exponential"]
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(description="Factor of an interval.")
    every: Duration = Field(Duration(epochs=1), description="Length of an interval.")


class CosineSchedule(_WarmedUp):
    """Half a cosine from the optimizer's learning rate to ``end`` (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"]
    end: Annotated[float, Field(ge=0)] = Field(0.0, description="Last learning rate.")


class CosineRestartsSchedule(_WarmedUp):
    """Half cosines to ``end``, each from the optimizer's learning rate (SGDR, the same paper).

    As CosineAnnealingWarmRestarts; the cycles are counted from the end of the warm-up.
    """

    type: Literal["cosine_restarts"]
    first_cycle: Duration = Field(description="Length of the first cycle.")
    cycle_multiplier: Count = Field(
        1, description="Length of a cycle divided by that of the one before it."
    )
    end: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Learning rate that a cycle falls to."
    )


class LinearSchedule(_WarmedUp):
    """A straight line from the optimizer's learning rate to ``end``."""

    type: Literal["linear"]
    end: Annotated[float, Field(ge=0)] = Field(0.0, description="Last learning rate.")


class OneCycleSchedule(Section):
    """Up to the optimizer's learning rate, then down (Smith and Topin 2018), as OneCycleLR."""

    type: Literal["one_cycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="Fraction of the steps in which the learning rate rises."
    )
    anneal: Literal["cos", "linear"] = Field("cos", description="Shape of both slopes.")
    div_factor: Annotated[float, Field(ge=1)] = Field(
        25.0, description="Optimizer's learning rate divided by the first one."
    )
    final_div_factor: Annotated[float, Field(ge=1)] = Field(
        1e4, description="First learning rate divided by the last one."
    )


class PlateauSchedule(_WarmedUp):
    """The learning rate times ``factor`` when validation does not improve, as ReduceLROnPlateau.

    Evaluations during the warm-up do not count.
    """

    type: Literal["plateau"]
    monitor: Literal["val.loss", "val.top1"] = Field(
        "val.loss", description="Metric of the validation images that is to improve."
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="Factor at each fall.")
    patience: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        10, description="Evaluations without an improvement that are borne before a fall."
    )
    threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        1e-4, description="Smallest improvement that counts, relative to the best value."
    )
    cooldown: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Evaluations after a fall that do not count."
    )
    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="Lowest learning rate.")


ScheduleSpec = Annotated[
    ConstantSchedule
    | MultistepSchedule
    | StepSchedule
    | ExponentialSchedule
    | CosineSchedule
    | CosineRestartsSchedule
    | LinearSchedule
    | OneCycleSchedule
    | PlateauSchedule,
    Field(discriminator="type"),
    PartRule(),
]


class ResizedPart(Section):
    """A fraction of the training in which images are smaller."""

    size: Annotated[int, Field(ge=1, le=4_096)] = Field(
        description="Pixels a side; of images that are not square, of the shorter side."
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Fraction of the whole training."
    )


class EmaSpec(Section):
    """Exponential moving average of the weights, which evaluation uses."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(description="Decay of the average.")
    every: Count = Field(1, description="Steps between updates.")


class EarlyStopSpec(Section):
    """Early stopping: training ends when the metric ``train.monitor`` has not risen for a while."""

    patience: Count = Field(description="Evaluations without a rise before training ends.")
    min_delta: Fraction = Field(0.0, description="Smallest rise that counts.")


class TrainSpec(Duration):
    """A recipe."""

    epochs: Count | None = Field(None, description="Number of passes over the training images.")
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        description="Images per optimizer step, over all processes."
    )
    optimizer: OptimizerSpec = Field(description="Optimizer.")
    schedule: ScheduleSpec = Field(
        ConstantSchedule(type="constant"), description="Learning rate at each step."
    )
    loss: Annotated[Part, PartRule("cross_entropy")] = Field(
        Part(type="cross_entropy"), description="Loss function."
    )
    seed: Seed = Field(0, description="Seed of initial weights, order, augmentation and dropout.")
    no_weight_decay: Annotated[
        tuple[Literal["norm", "bias"], ...], Field(max_length=2, strict=False)
    ] = Field(
        (),
        description="Parameters without weight decay: `norm`, those of normalisation layers and "
        "other vectors, as PReLU's; `bias`, all biases.",
    )
    freeze: Annotated[tuple[str, ...], Field(max_length=18, strict=False)] = Field(
        (),
        description="Layers that stay exactly as they are, statistics included: `stem`, stages "
        "(`layer1` and so on), `head`.",
    )
    head_lr_multiplier: Rate = Field(1.0, description="Factor of the head's learning rate.")
    ema: EmaSpec | None = Field(None, description="Moving average of the weights.")
    clip_norm: Rate | None = Field(None, description="Largest norm of the whole gradient.")
    accumulate: Count = Field(1, description="Number of micro-batches that a batch is split into.")
    sync_norm: bool = Field(
        False,
        description="Batch norms over the images of all processes, where there are several, "
        "instead of each process's own.",
    )
    activation_checkpointing: (
        Literal["all"] | Annotated[tuple[str, ...], Field(max_length=16, strict=False)]
    ) = Field(
        (),
        description="Stages (`layer1` and so on, or `all`) that keep only the inputs of their "
        "blocks, and compute the rest again in the backward pass: less memory, more time.",
    )
    progressive_resizing: Annotated[tuple[ResizedPart, ...], Field(max_length=16, strict=False)] = (
        Field(
            (),
            description="Smaller images first, which cost less: sizes, and the fraction of the "
            "training that each lasts; the rest is at the images' own size.",
        )
    )
    evaluate_every: Interval = Field(
        Interval(epochs=1), description="When the validation images are evaluated."
    )
    checkpoint_every: Interval = Field(
        Interval(seconds=300.0), description="When a checkpoint is saved."
    )
    keep_checkpoints: Annotated[int, Field(ge=2, le=1_000)] = Field(
        2, description="Number of the newest checkpoints that are kept."
    )
    monitor: Literal["val.top1", "val.loss", "val.macro_recall", "val.macro_f1"] | None = Field(
        None,
        description="Metric of the validation images that selects the best weights, and that early "
        "stopping compares; by default top-1, or mAP where images have several labels.",
    )
    early_stop: EarlyStopSpec | None = Field(None, description="Early stopping.")

    @property
    def unit(self) -> Unit:
        """Unit of the recipe's length."""
        return "steps" if self.steps is not None else "epochs"

    @field_validator("evaluate_every")
    @classmethod
    def _is_reproducible(cls, value: Interval) -> Interval:
        if value.seconds is not None:
            raise problem(
                "exclusive",
                "give `steps` or `epochs`: with seconds, no run could be repeated",
                at="seconds",
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size % self.accumulate:
            raise problem(
                "out-of-range",
                "a batch of {batch} images cannot be split into {parts} equal parts",
                at="accumulate",
                batch=self.batch_size,
                parts=self.accumulate,
            )
        optimizer = self.optimizer.aux if isinstance(self.optimizer, Muon) else self.optimizer
        if self.no_weight_decay and optimizer.weight_decay == 0:
            raise problem("no-effect", "has no effect without weight_decay", at="no_weight_decay")
        if sum(part.fraction for part in self.progressive_resizing) >= 1:
            raise problem(
                "out-of-range",
                "the fractions must add up to less than 1: training ends at the images' own size",
                at="progressive_resizing",
            )
        self._check_schedule()
        return self

    def _check_schedule(self) -> None:
        """Check the schedule as far as that needs no data."""
        length = self.steps or self.epochs or 0
        schedule = self.schedule
        if isinstance(schedule, _WarmedUp) and schedule.warmup is not None:
            self._check_warmup(schedule.warmup, length)
        if isinstance(schedule, PlateauSchedule) and schedule.min_lr >= self.optimizer.lr:
            raise problem(
                "out-of-range",
                "must be below the optimizer's learning rate, {lr}",
                at="schedule.min_lr",
                lr=self.optimizer.lr,
            )
        if not isinstance(schedule, MultistepSchedule):
            return
        unit = schedule.unit or self.unit
        if unit == "steps" and any(isinstance(one, float) for one in schedule.milestones):
            raise problem(
                "wrong-type",
                "steps must be whole numbers: {milestones}",
                at="schedule.milestones",
                milestones=list(schedule.milestones),
            )
        if unit == self.unit and (last := schedule.milestones[-1]) >= length:
            raise problem(
                "out-of-range",
                "milestone {last} is not before the end, {length} {unit}; on the command line, "
                "`--{unit} {length}` scales them with the rest of the recipe",
                at="schedule.milestones",
                last=last,
                length=length,
                unit=unit,
            )

    def _check_warmup(self, warmup: ConstantWarmup | LinearWarmup, length: int) -> None:
        if (getattr(warmup, self.unit) or 0) >= length:
            raise problem(
                "out-of-range",
                "the warm-up must be shorter than the training, {length} {unit}",
                at="schedule.warmup",
                length=length,
                unit=self.unit,
            )
        first = warmup.lr if isinstance(warmup, ConstantWarmup) else warmup.start
        if first >= self.optimizer.lr:
            raise problem(
                "out-of-range",
                "the warm-up must begin below the optimizer's learning rate, {lr}, not at {first}",
                at="schedule.warmup",
                lr=self.optimizer.lr,
                first=first,
            )
