"""What commands print for ``--json``: a model for each, with the rules of the records."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from resnet_builder.runs.records import Count, Duration, Record


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
