"""Measuring a spec: its training, a plain loop and its convolutions alone, in turns."""

import sys
from dataclasses import dataclass, replace

import torch

from resnet_builder.activations import activation_memory
from resnet_builder.bench.clock import Rate, rate, seconds_per_call
from resnet_builder.bench.endless import endless, recipe_steps
from resnet_builder.bench.floor import Floor, FloorTimes, Work, convolutions_of
from resnet_builder.bench.memory import Peak
from resnet_builder.bench.plain import PlainLoop
from resnet_builder.bench.settings import Setting, explain
from resnet_builder.bench.sizing import FEWEST, Size, measurable_size
from resnet_builder.bench.turns import Interlude, Turns, train_in_turns
from resnet_builder.builder import build_on_meta
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.device import describe, free_memory, pick_device
from resnet_builder.errors import ResourceError, UsageError
from resnet_builder.model import ResNet, count_parameters
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.schema import Spec
from resnet_builder.training.finetune import freeze
from resnet_builder.training.resources import estimate_training, size_text
from resnet_builder.training.runtime import MEMORY_FORMATS

ROUNDS = 5
"""Turns that each of the three has."""

_OURS, _OTHERS = 0.4, 0.3
"""Shares of a round."""

_LONGEST_STEP = 0.6
"""Of a round: with a longer one, fewer images are taken at a time."""

_TRIED = "`train` tries whether it pays, which takes a minute or more; measured is without"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training.

    Attributes:
        batch_size: Images a step.
        epochs: Its length, if it is given so.
        steps: Its length; ``None`` where that depends on images not yet read.
        seconds: That it would take, without evaluations; ``None`` likewise.
    """

    batch_size: int
    epochs: int | None
    steps: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What training holds.

    Attributes:
        parameters: Numbers that are learnt.
        activation_bytes: What a step keeps for its backward pass, of all images that are computed
            at a time, were none of it computed again.
        peak: The most memory held, where that is known.
    """

    parameters: int
    activation_bytes: int
    peak: Peak | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What a spec costs on this machine.

    Attributes:
        name: The spec's.
        device: The hardware's own name.
        image: Shape of an image, ``(C, H, W)``.
        size: Of the steps that were measured.
        ours: How fast `train` trains.
        plain: How fast a plain loop trains.
        floor: What the convolutions of one of our steps take alone, by torch's operations.
        memory: What our training holds.
        recipe: The whole training.
        settings: How ours is computed, and why.
    """

    name: str
    device: str
    image: tuple[int, int, int]
    size: Size
    ours: Rate
    plain: Rate
    floor: FloorTimes
    memory: Memory
    recipe: Recipe
    settings: tuple[Setting, ...]

    @property
    def ratio(self) -> float:
        """Our images per second over the plain loop's."""
        return self.ours.images_per_second / self.plain.images_per_second

    @property
    def floor_share(self) -> float:
        """The time of the convolutions, by torch, over that of our step; it may exceed 1."""
        return self.floor.seconds() / self.ours.seconds_per_step


def measure(
    spec: Spec,
    *,
    seconds: float,
    warn: Warn,
    report: Report = silent,
    stop: Stop = never,
) -> Bench:
    """Measure a spec on this machine, on made-up images.

    Settings of the whole process are left as they are: what :func:`training.runtime.set_backend_flags`
    sets, the caller does, for all three alike.

    Args:
        spec: The experiment, resolved.
        seconds: That it takes, about; not counted is what comes before the first round.
        warn: Told of what training warns of.
        report: Told of every round.
        stop: Polled before every step.

    Raises:
        ResourceError: There is not memory enough.
        Stopped: ``stop`` became true.
        UsageError: There is no recipe, or nothing to train, or no such device.
    """
    if spec.data is None or spec.train is None:
        raise UsageError(f"{spec.name}: a spec to measure needs `data` and `train`")
    device = pick_device(spec.run.device)
    length = seconds / ROUNDS
    size = measurable_size(spec, device, _LONGEST_STEP * length, most=_room(spec, device))
    rivals = _Rivals(spec, device, size, _OTHERS * length, report)
    turns = train_in_turns(
        endless(spec, batch_size=size.batch_size, accumulate=size.accumulate),
        rounds=ROUNDS,
        seconds=_OURS * length,
        interlude=rivals.prepare,
        warn=warn,
        stop=stop,
    )
    ours = rate(turns.seconds_per_step, size.batch_size)
    recipe = _recipe(spec, ours)
    return Bench(
        name=spec.name,
        device=describe(device),
        image=spec.model.image_shape,
        size=size,
        ours=ours,
        plain=rate(rivals.plain_seconds, size.part_size),
        floor=rivals.floor.times(),
        memory=_memory(spec, size, turns),
        recipe=recipe,
        settings=explain(turns.start.runtime, spec.run),
    )


class _Rivals:
    """What ours is compared with, in the pauses of our training."""

    def __init__(
        self, spec: Spec, device: torch.device, size: Size, seconds: float, report: Report
    ) -> None:
        self._spec = spec
        self._device = device
        self._size = size
        self._seconds = seconds
        self._report = report
        self._work = _convolutions(spec, size)
        self.plain_seconds: list[float] = []

    def prepare(self, choices: RuntimeConfig) -> Interlude:
        """Make them ready to compute, the convolutions as ours are computed."""
        self.floor = Floor(
            self._work,
            device=self._device,
            dtype=_DTYPES[choices.precision],
            memory_format=MEMORY_FORMATS[choices.memory_format],
        )
        self._plain = PlainLoop(self._spec, self._device)
        self._plain.turn(self._size.part_size, seconds=0)
        return self._take_turn

    def _take_turn(self) -> None:
        self.plain_seconds.append(self._plain.turn(self._size.part_size, self._seconds))
        seconds_per_call(self.floor.sweep, self._device, self._seconds)
        self._report("measuring", len(self.plain_seconds), ROUNDS)


def _convolutions(spec: Spec, size: Size) -> tuple[Work, ...]:
    """Note the convolutions of one of our steps, all parts of it."""
    work = convolutions_of(_on_meta(spec), (size.part_size, *spec.model.image_shape))
    return tuple(replace(each, count=each.count * size.accumulate) for each in work)


def _memory(spec: Spec, size: Size, turns: Turns) -> Memory:
    network = _on_meta(spec)
    kept = activation_memory(
        network,
        (size.part_size, *spec.model.image_shape),
        bf16=turns.start.runtime.precision == "bf16",
    )
    return Memory(count_parameters(network), kept.total, turns.peak)


def _recipe(spec: Spec, ours: Rate) -> Recipe:
    assert spec.train is not None, "refused before"
    batch_size, steps = spec.train.batch_size, recipe_steps(spec)
    seconds = None if steps is None else steps * batch_size / ours.images_per_second
    return Recipe(batch_size, spec.train.epochs, steps, seconds)


def _room(spec: Spec, device: torch.device) -> int:
    """Return how many images at a time both ours and the plain loop have memory for.

    Raises:
        ResourceError: Not even for the fewest.
    """
    assert spec.train is not None, "refused before"
    free, fewest = free_memory(device), min(FEWEST, spec.train.batch_size)
    if free is None:
        return sys.maxsize
    estimate = estimate_training(endless(spec, batch_size=fewest, accumulate=1), "fp32")
    room = estimate.largest_part(free // 2)
    if room < fewest:
        raise ResourceError(
            f"{spec.name} does not fit into memory: measuring it takes "
            f"{size_text(2 * estimate.network)}, for ours and for the plain loop, and "
            f"{size_text(free)} are free\n{estimate.table()}"
        )
    return room


def _on_meta(spec: Spec) -> ResNet:
    """Return a spec's network, ready to be trained but for its weights."""
    assert spec.train is not None, "refused before"
    network = build_on_meta(spec.model).train()
    freeze(network, spec.train.freeze)
    return network
