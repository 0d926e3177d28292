"""What commands print for ``--json``: a model for each, with the rules of the records."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from resnet_builder.runs.records import Count, Duration, Fraction, Record, ResultRecord


class ProblemRecord(BaseModel):
    """Something wrong in a spec; the fields are those of :class:`errors.Problem`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    code: str
    path: str
    message: str
    file: str
    line: int | None = None
    col: int | None = None
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None


class ChangedCount(BaseModel):
    """A count that ``validate --expect`` wrote anew; see :class:`spec.expectations.Change`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    key: str
    before: Count | None
    after: Count


class CheckRecord(BaseModel):
    """A spec that was checked.

    Attributes:
        source: What the user called it.
        name: Its own; ``None`` like the counts below if something is wrong with it.
        depth: As in the names of He et al. 2015.
        macs: Multiply-adds for one image.
        memory_bytes: What training is expected to take; absent like the two below if there is no
            recipe.
        activation_bytes: Of these, what is kept for the backward pass.
        disk_bytes: What a run keeps on the disk at most.
        changed: Counts written into its file, if that was asked for.
        problems: What is wrong with it, in file order.
        notices: What the user should know.
        error: What keeps it from being read at all.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    name: str | None = None
    parameters: Count | None = None
    depth: Count | None = None
    macs: Count | None = None
    memory_bytes: Count | None = None
    activation_bytes: Count | None = None
    disk_bytes: Count | None = None
    changed: tuple[ChangedCount, ...] | None = None
    problems: tuple[ProblemRecord, ...] = ()
    notices: tuple[str, ...] = ()
    error: str | None = None


class ValidationRecord(Record):
    """``validate --json``: every spec that was checked, in the order given."""

    schema_number: Literal[1] = Field(1, alias="schema")
    specs: tuple[CheckRecord, ...]


class LayerRecord(BaseModel):
    """A row of a summary; the fields are those of :class:`summary.Row`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: Count
    macs: Count
    receptive_field: int | None
    depth: Count


class SummaryRecord(Record):
    """``summary --json``; the fields are those of :class:`summary.Summary`."""

    model_config = ConfigDict(from_attributes=True)

    schema_number: Literal[1] = Field(1, alias="schema")
    name: str
    image: tuple[int, int, int]
    parameters: Count
    macs: Count
    depth: Count
    depth_arithmetic: str
    activation_bytes: Count
    rows: tuple[LayerRecord, ...]
    layers: tuple[LayerRecord, ...]


class BundledRecord(BaseModel):
    """A bundled spec or recipe.

    Attributes:
        what: The first line of its header.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    what: str
    parameters: Count | None = None
    depth: Count | None = None
    macs: Count | None = None
    published_test_top1: Fraction | None = Field(None, serialization_alias="published.test.top1")


class BundledListRecord(Record):
    """``list specs --json`` and ``list recipes --json``."""

    schema_number: Literal[1] = Field(1, alias="schema")
    bundled: tuple[BundledRecord, ...]


class OptionRecord(BaseModel):
    """An option of a part.

    Attributes:
        kind: What it takes, in words.
        allowed: Its range, or its choices.
        default: As JSON; absent where it has to be given.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    allowed: tuple[str, ...]
    required: bool
    default: Any = None


class PartRecord(BaseModel):
    """A registered part, or a member of a closed set.

    Attributes:
        set: What it is one of: ``block``, ``shortcut``, ``optimizer``.
        what: The first line of its description.
    """

    model_config = ConfigDict(frozen=True)

    set: str
    name: str
    what: str
    options: tuple[OptionRecord, ...]


class PartListRecord(Record):
    """``list parts --json``."""

    schema_number: Literal[1] = Field(1, alias="schema")
    parts: tuple[PartRecord, ...]


class RunRecord(BaseModel):
    """A run directory.

    Attributes:
        state: ``finished``, ``started`` or ``unreadable``.
        result: The outcome of a finished run.
        error: Why it cannot be read.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    state: Literal["finished", "started", "unreadable"]
    result: ResultRecord | None = None
    error: str | None = None


class RunListRecord(Record):
    """``list runs --json``."""

    schema_number: Literal[1] = Field(1, alias="schema")
    runs: tuple[RunRecord, ...]


class SubjectRecord(BaseModel):
    """One of two experiments that were compared.

    Attributes:
        source: What the user called it.
        kind: What it is.
        name: Its spec's.
        macs: Multiply-adds for one image.
        activation_bytes: What a training step keeps for each image, in fp32.
        depth: As in the names of He et al. 2015.
        metrics: Of its weights, by names like ``test.top1``.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    kind: Literal["spec", "run", "weights"]
    name: str
    parameters: Count
    macs: Count
    activation_bytes: Count
    depth: Count
    metrics: dict[str, float]


class DifferenceRecord(BaseModel):
    """A value of the specs that differs; it is left out on the side where it is absent."""

    model_config = ConfigDict(frozen=True)

    path: str
    before: Any = None
    after: Any = None


class WeightsDiffRecord(BaseModel):
    """How many tensors differ, and how; see :class:`comparison.WeightsDiff`.

    Attributes:
        are_equal: Whether both networks have the same tensors, bit for bit.
    """

    model_config = ConfigDict(frozen=True)

    are_equal: bool
    equal: Count
    differing: Count
    reshaped: Count
    only_a: Count
    only_b: Count
    largest: float
    largest_in: str | None = None


class DiffRecord(Record):
    """``diff --json``.

    Attributes:
        differences: Of the specs.
        weights: Of the weights, if both have some.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    a: SubjectRecord
    b: SubjectRecord
    differences: tuple[DifferenceRecord, ...]
    weights: WeightsDiffRecord | None = None


class RateRecord(BaseModel):
    """How fast something trained; the fields are those of :class:`bench.clock.Rate`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    images_per_second: Duration
    low: Duration
    high: Duration
    seconds_per_step: Duration


class FloorRecord(BaseModel):
    """What the convolutions of one of our steps take alone.

    Attributes:
        share: Their part of the step's time.
        seconds: Of all of them.
        forward: Seconds of the forward pass.
        weight_gradient: Seconds of the gradients of their weights.
        input_gradient: Seconds of the gradients of their inputs.
    """

    model_config = ConfigDict(frozen=True)

    share: Duration
    seconds: Duration
    forward: Duration
    weight_gradient: Duration
    input_gradient: Duration


class MemoryRecord(BaseModel):
    """What training holds.

    Attributes:
        parameters: Numbers that are learnt.
        activation_bytes: What a step keeps for its backward pass, were none of it computed again.
        peak_bytes: The most that the process held, or that was held on the device; absent where
            nobody counts, like the next.
        before_bytes: Of it, what was held before the first step.
    """

    model_config = ConfigDict(frozen=True)

    parameters: Count
    activation_bytes: Count
    peak_bytes: Count | None = None
    before_bytes: Count | None = None


class RecipeRecord(BaseModel):
    """A whole training; see :class:`bench.measuring.Recipe`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    batch_size: Count
    epochs: Count | None = None
    steps: Count | None = None
    seconds: Duration | None = None


class SettingRecord(BaseModel):
    """How something is computed, and why; see :class:`bench.settings.Setting`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    value: str
    why: str


class BenchRecord(Record):
    """``bench --json``.

    Attributes:
        name: The spec's.
        device: The hardware's own name and number.
        versions: Of Python and of the packages that compute.
        image: Shape of an image, ``(C, H, W)``.
        batch_size: Images of the steps that were measured.
        accumulate: Parts that they were computed in.
        ours: How fast `train` trains.
        plain: How fast a plain loop trains.
        plain_is: What that is, in words.
        ratio: Our images per second over the plain loop's.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    name: str
    device: str
    versions: dict[str, str]
    image: tuple[int, int, int]
    batch_size: Count
    accumulate: Count
    ours: RateRecord
    plain: RateRecord
    plain_is: str
    ratio: Duration
    floor: FloorRecord
    memory: MemoryRecord
    recipe: RecipeRecord
    settings: tuple[SettingRecord, ...]
