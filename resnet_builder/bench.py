"""Benchmark of a spec on this machine: interleaved timing of `train`, a baseline and the roofline.

`train` trains the steady-state spec; the baseline is a plain loop; the roofline is what a step's
convolutions take alone, by torch. They take turns, so that a noisy machine is noisy for all three.
"""

import ctypes
import gc
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_builder.builder import build, build_on_meta
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.splits import load_data
from resnet_builder.device import describe, free_memory, pick_device
from resnet_builder.errors import Stopped
from resnet_builder.experiment import Experiment
from resnet_builder.memory import activation_memory, estimate_training
from resnet_builder.model import count_parameters
from resnet_builder.parts import input_info
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import RuntimeConfig, versions
from resnet_builder.spec.recipe import ConstantSchedule, ConstantWarmup, Interval
from resnet_builder.spec.section import Part
from resnet_builder.training.callbacks import Callback, TrainStart
from resnet_builder.training.finetune import freeze
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.runtime import MEMORY_FORMATS
from resnet_builder.training.step import make_loss
from resnet_builder.training.trainer import fit

ROUNDS = 5
"""Turns of each contender."""

_TRAIN_SHARE, _OTHER_SHARE = 0.4, 0.3  # of a round
_MAX_STEP_SHARE = 0.6  # of a round; steps that take longer are measured with fewer images
_MIN_IMAGES = 2  # batch norm refuses to train on one pixel of one image
_WARM_UP_STEPS = 3

BASELINE = (
    "fp32, torch's own memory layout, not compiled, weights updated tensor by tensor, the loss "
    "read after every step, batches ready in memory"
)
"""Description of the baseline loop."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Training speed over several turns.

    Attributes:
        images_per_second: Median of the turns.
        low: Lower quartile of the turns.
        high: Upper quartile of the turns.
        seconds_per_step: Median of the turns.
    """

    images_per_second: float
    low: float
    high: float
    seconds_per_step: float

    @classmethod
    def of(cls, seconds_per_step: Sequence[float], images: int) -> "Rate":
        """Rate of steps of so many images."""
        rates = [images / seconds for seconds in seconds_per_step]
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
        return cls(statistics.median(rates), low, high, statistics.median(seconds_per_step))


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds of a step's convolutions alone, by torch's operations.

    Attributes:
        share: Share of a step of `train`; above 1 where CPU kernels are faster than torch.
        seconds: All convolutions.
        forward: Their outputs.
        weight_gradient: Gradients of their weights and biases.
        input_gradient: Gradients of their inputs.
    """

    share: float
    seconds: float
    forward: float
    weight_gradient: float
    input_gradient: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of training.

    Attributes:
        parameters: Number of parameters.
        activation_bytes: Activations that a micro-batch keeps for its backward pass, without
            activation checkpointing.
        peak_bytes: Peak of the process, or of the device; ``None`` where nobody counts it.
        before_bytes: Part of it that was in use before the first step.
    """

    parameters: int
    activation_bytes: int
    peak_bytes: int | None
    before_bytes: int | None


@dataclass(frozen=True, slots=True)
class RecipeLength:
    """Length of the whole training.

    Attributes:
        batch_size: Images of a step.
        epochs: Number of epochs, if it is given so.
        steps: Number of steps; ``None`` where it depends on images that are not read yet.
        seconds: Duration without evaluations; ``None`` likewise.
    """

    batch_size: int
    epochs: int | None
    steps: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Result of a benchmark; its fields are the keys of ``bench --json``.

    Attributes:
        name: Name of the spec.
        device: Name of the hardware.
        versions: Versions of Python and of the packages that compute.
        image: Shape of an image, ``(C, H, W)``.
        batch_size: Images of the steps that were measured.
        accumulate: Micro-batches of a step.
        train: Speed of `train`.
        baseline: Speed of the baseline loop.
        baseline_is: Description of the baseline.
        speed_up: Speed-up of `train` over the baseline.
        roofline: Time of the convolutions alone.
        memory: Memory of `train`.
        recipe: Length of the whole training.
        runtime: Device, precision, threads and the like, as ``env.json`` records them.
    """

    name: str
    device: str
    versions: dict[str, str]
    image: tuple[int, int, int]
    batch_size: int
    accumulate: int
    train: Rate
    baseline: Rate
    baseline_is: str
    speed_up: float
    roofline: Roofline
    memory: Memory
    recipe: RecipeLength
    runtime: RuntimeConfig


def measure(
    experiment: Experiment,
    *,
    seconds: float,
    warn: Warn,
    report: Report = silent,
    should_stop: Stop = never,
) -> Benchmark:
    """Measure a spec on this machine, on synthetic images.

    The caller sets the flags of the process (:func:`training.runtime.set_backend_flags`).

    Args:
        experiment: The experiment.
        seconds: Duration of all turns, about.
        warn: Called with each warning of the training.
        report: Called after every round.
        should_stop: Polled before every step.

    Raises:
        ResourceError: Memory ran out.
        Stopped: ``should_stop`` became true.
        UsageError: The recipe does not fit the network, or there is no such device.
    """
    recipe, shape = experiment.train, experiment.input_shape
    device, round_seconds = pick_device(experiment.run.device), seconds / ROUNDS
    images, accumulate = find_batch_size(experiment, device, _MAX_STEP_SHARE * round_seconds)
    batch_size = images * accumulate
    network = build_on_meta(experiment.model).train()
    freeze(network, recipe.freeze)
    operations = count_convolutions(network, (images, *shape))
    steady = steady_state(experiment, batch_size=batch_size, accumulate=accumulate)

    def make_baseline() -> _Baseline:
        return _Baseline(experiment, device, images)

    turns = _Turns(device, round_seconds, make_baseline, operations, warn, report, should_stop)
    turns.run(steady)
    assert turns.runtime is not None, "the training has started"
    rate = Rate.of(turns.seconds_per_step, batch_size)
    baseline_rate = Rate.of(turns.baseline_seconds, images)
    is_bf16 = turns.runtime.precision == "bf16"
    activations = activation_memory(network, (images, *shape), bf16=is_bf16)
    steps = _recipe_steps(experiment)
    duration = None if steps is None else steps * recipe.batch_size / rate.images_per_second
    parts = {"forward": 0.0, "weight_gradient": 0.0, "input_gradient": 0.0}
    for op, count in operations.items():
        op_seconds = statistics.median(times[op] for times in turns.convolution_seconds)
        parts[op.kind] += accumulate * count * op_seconds
    total = sum(parts.values())
    return Benchmark(
        name=experiment.name,
        device=describe(device),
        versions=versions(),
        image=shape,
        batch_size=batch_size,
        accumulate=accumulate,
        train=rate,
        baseline=baseline_rate,
        baseline_is=BASELINE,
        speed_up=rate.images_per_second / baseline_rate.images_per_second,
        roofline=Roofline(total / rate.seconds_per_step, total, **parts),
        memory=Memory(count_parameters(network), activations.total, *turns.peak),
        recipe=RecipeLength(recipe.batch_size, recipe.epochs, steps, duration),
        runtime=turns.runtime,
    )


# ---- steady-state experiment ---------------------------------------------------------------------

_ENDLESS = 2**31 - 1
_SYNTHETIC_BYTES = 64 * 1024 * 1024
_SYNTHETIC_IMAGES = 4096


def steady_state(experiment: Experiment, *, batch_size: int, accumulate: int) -> Experiment:
    """Experiment that trains in the same way, without end, evaluations or checkpoints.

    Its images are synthetic and in memory; they are augmented and normalised as the spec says.

    Args:
        experiment: The experiment.
        batch_size: Images of a step.
        accumulate: Micro-batches of a step.
    """
    channels, size, _ = experiment.input_shape
    affordable = min(_SYNTHETIC_IMAGES, _SYNTHETIC_BYTES // (channels * size * size))
    synthetic = Part.model_validate(
        {
            "type": "synthetic",
            "num_classes": experiment.model.num_classes,
            "channels": channels,
            "image_size": size,
            "train": max(batch_size, affordable),
            "test": 1,
        }
    )
    data = experiment.data.model_copy(
        update={"dataset": synthetic, "validation": 0, "split_seed": 0, "preprocess": ()}
    )
    # Weights hardly move: a step's cost does not depend on them, and nothing diverges.
    tiny_lr = ConstantWarmup(type="constant", lr=1e-6, steps=_ENDLESS - 1)
    train = experiment.train.model_copy(
        update={
            "steps": _ENDLESS,
            "epochs": None,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "schedule": ConstantSchedule(type="constant", warmup=tiny_lr),
            "evaluate_every": Interval(steps=_ENDLESS),
            "checkpoint_every": Interval(steps=_ENDLESS),
            "early_stop": None,
            "progressive_resizing": (),
        }
    )
    spec = experiment.spec.model_copy(update={"data": data, "train": train})
    return replace(experiment, spec=spec)


def _recipe_steps(experiment: Experiment) -> int | None:
    train, data = experiment.train, experiment.data
    if train.steps is not None or train.epochs is None:
        return train.steps
    count = input_info(data).training_images
    if count is None:
        return None
    return train.epochs * ((count - data.set_aside(count)) // train.batch_size)


# ---- interleaved timing --------------------------------------------------------------------------


class _Over(Exception):
    """The training is over; unlike after :class:`Stopped`, no checkpoint is saved."""


class _Turns(Callback):
    """Callback of a training, and its ``should_stop``: between its turns the others have theirs."""

    def __init__(
        self,
        device: torch.device,
        round_seconds: float,
        make_baseline: "Callable[[], _Baseline]",
        operations: "Counter[Operation]",
        warn: Warn,
        report: Report,
        should_stop: Stop,
    ) -> None:
        self._device = device
        self._round_seconds = round_seconds
        self._make_baseline = make_baseline
        self._operations = operations
        self._report = report
        self._should_stop = should_stop
        self._steps = self._take_turns()
        self._is_stopped = False
        self._warn = warn
        self.runtime: RuntimeConfig | None = None
        self.seconds_per_step: list[float] = []
        self.baseline_seconds: list[float] = []
        self.convolution_seconds: list[dict[Operation, float]] = []
        self.peak: tuple[int | None, int | None] = (None, None)

    def run(self, experiment: Experiment) -> None:
        """Train a steady-state experiment for all turns."""
        data = load_data(experiment.spec)
        network = build(experiment, seed=0, pretrained=False)
        with tempfile.TemporaryDirectory() as folder, suppress(_Over):
            run = RunDirectory.create(Path(folder, "run"))
            fit(network, data, experiment, run, callbacks=[self], should_stop=self)
        if self._is_stopped:
            raise Stopped("stopped while measuring")

    def on_train_start(self, start: TrainStart) -> None:
        """Note the runtime."""
        self.runtime = start.runtime

    def on_warning(self, message: str) -> None:
        """Pass it on."""
        self._warn(message)

    def __call__(self) -> bool:
        """Return before the training's next step."""
        if self._should_stop():
            self._is_stopped = True
            raise _Over
        next(self._steps)
        return False

    def _take_turns(self) -> Generator[None, None, None]:
        assert self.runtime is not None, "the training has started"
        meter = PeakMeter(self._device)
        yield from self._turn(_WARM_UP_STEPS)
        self.peak = meter.peak(), meter.before
        baseline = self._make_baseline()  # only now: its memory is not the training's
        baseline.train(0)
        calls = _convolution_calls(self._operations, self._device, self.runtime)
        other_seconds = _OTHER_SHARE * self._round_seconds
        for number in range(1, ROUNDS + 1):
            self.baseline_seconds.append(baseline.train(other_seconds))
            end = perf_counter() + other_seconds
            while True:
                with torch.no_grad():
                    times = {op: _time(call, self._device) for op, call in calls.items()}
                self.convolution_seconds.append(times)
                if perf_counter() >= end:
                    break
            self._report("measuring", number, ROUNDS)
            self.seconds_per_step.append((yield from self._turn(1)))
        raise _Over

    def _turn(self, min_steps: int) -> Generator[None, None, float]:
        """Yield for each step of a turn; return the seconds of a step."""
        seconds = _TRAIN_SHARE * self._round_seconds
        _synchronize(self._device)
        started, steps = perf_counter(), 0
        while steps < min_steps or perf_counter() - started < seconds:
            yield
            steps += 1
        _synchronize(self._device)
        return (perf_counter() - started) / steps


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _time(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    started = perf_counter()
    call()
    _synchronize(device)
    return perf_counter() - started


class PeakMeter:
    """Peak memory from now on, once freed memory is given back to the system.

    Args:
        device: Device of the training; on the CPU the whole process is measured.

    Attributes:
        before: Bytes in use now; ``None`` where nobody counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        with suppress(OSError, AttributeError, TypeError):  # no glibc
            ctypes.CDLL(None).malloc_trim(0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # no Linux, or not allowed to
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; see proc(5)
        self.before = self.peak()

    def peak(self) -> int | None:
        """Most bytes in use since then; ``None`` where nobody counts."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._device.type == "cpu":
            with suppress(OSError):
                status = Path("/proc/self/status").read_text(encoding="ascii")
                if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                    return int(found[1]) * 1024
        return None


# ---- baseline and batch-size search --------------------------------------------------------------


class _Baseline:
    """Plain training loop, as in a script that nobody has tuned; see :data:`BASELINE`."""

    def __init__(self, experiment: Experiment, device: torch.device, images: int) -> None:
        recipe = experiment.train
        self.images = images
        self._model = experiment.model
        self._device = device
        self._network = build(experiment, seed=0, device=str(device), pretrained=False).train()
        freeze(self._network, recipe.freeze)
        self._loss = make_loss(recipe.loss)
        self._optimizer = build_optimizer(
            self._network,
            recipe.optimizer,
            no_weight_decay=recipe.no_weight_decay,
            fused=False,
            head_lr_multiplier=recipe.head_lr_multiplier,
        )

    def train(self, seconds: float) -> float:
        """Train for some seconds, at least one step; return the seconds of a step."""
        shape, classes = (self.images, *self._model.image_shape), self._model.num_classes
        batches = [
            (
                torch.randn(shape, device=self._device),
                torch.randint(classes, (self.images,), device=self._device),
            )
            for _ in range(4)
        ]
        steps, spent = 0, 0.0
        while steps == 0 or spent < seconds:
            spent += _time(partial(self._step, *batches[steps % 4]), self._device)
            steps += 1
        return spent / steps

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self._optimizer.zero_grad()
        loss = self._loss(self._network(images), labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        loss.item()


def find_batch_size(
    experiment: Experiment, device: torch.device, seconds: float
) -> tuple[int, int]:
    """Micro-batch size and number of micro-batches of the steps to measure.

    They are the recipe's own, or one micro-batch of fewer images if a step of the recipe would take
    too long or too much memory. The baseline tries more and more images; `train` is hardly slower.

    Args:
        experiment: The experiment.
        device: Device of the training.
        seconds: Seconds that a step may take.
    """
    accumulate = experiment.train.accumulate
    wanted = limit = experiment.train.batch_size // accumulate
    if (free := free_memory(device)) is not None:
        smallest = steady_state(experiment, batch_size=_MIN_IMAGES, accumulate=1)
        affordable = estimate_training(smallest, "fp32").largest_micro_batch(free // 2)
        limit = min(wanted, max(_MIN_IMAGES, affordable))
    baseline = _Baseline(experiment, device, min(_MIN_IMAGES, wanted))

    def step_seconds(limit: float) -> float:
        first = baseline.train(0)  # the first step of its kind also compiles kernels
        return first if first <= limit else min(first, baseline.train(0))

    while baseline.images < limit and 2 * step_seconds(seconds / 2) <= seconds:
        baseline.images = min(2 * baseline.images, limit)
    if baseline.images == wanted and accumulate * step_seconds(seconds) <= seconds:
        return wanted, accumulate
    return baseline.images, 1


# ---- roofline ------------------------------------------------------------------------------------

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


class Operation(NamedTuple):
    """A convolution of given shapes, or one of its gradients.

    Attributes:
        kind: Which of them; the weight's gradient includes the bias's.
        input: Shape of the input.
        weight: Shape of the weight.
        output: Shape of the output.
        has_bias: Whether it adds a bias.
        options: Stride, padding, dilation, whether transposed, output padding and groups.
    """

    kind: Literal["forward", "weight_gradient", "input_gradient"]
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    has_bias: bool
    options: tuple[Any, ...]


def count_convolutions(network: nn.Module, shape: tuple[int, ...]) -> Counter[Operation]:
    """Count the convolutions of a training step, and their gradients.

    Args:
        network: Network on meta, in training mode, with what is frozen.
        shape: Shape of a batch, ``(N, C, H, W)``.
    """
    counter = _ConvolutionCounter()
    with counter:
        network(torch.empty(shape, device="meta")).sum().backward()
    return counter.counts


class _ConvolutionCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.counts: Counter[Operation] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _FORWARD:
            x, weight, bias, *options = args
            self._count("forward", x, weight, result, bias is not None, options)
        elif func is _BACKWARD:
            dy, x, weight, bias_sizes, *options, (needs_input, needs_weight, _) = args
            if needs_weight:
                self._count("weight_gradient", x, weight, dy, bias_sizes is not None, options)
            if needs_input:
                self._count("input_gradient", x, weight, dy, bias_sizes is not None, options)
        return result

    def _count(
        self, kind: Any, x: Tensor, weight: Tensor, y: Tensor, has_bias: bool, options: list[Any]
    ) -> None:
        shapes = (tuple(x.shape), tuple(weight.shape), tuple(y.shape))
        hashable = tuple(tuple(each) if isinstance(each, list) else each for each in options)
        self.counts[Operation(kind, *shapes, has_bias, hashable)] += 1


def _convolution_calls(
    operations: Counter[Operation], device: torch.device, runtime: RuntimeConfig
) -> dict[Operation, Callable[[], object]]:
    """Return functions that compute each operation once."""
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    layout = MEMORY_FORMATS[runtime.memory_format]

    @cache  # operations share tensors; a sweep through all of them leaves none in the caches
    def images(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)

    def call_of(op: Operation) -> Callable[[], object]:
        weight = images(op.weight)
        bias = weight.new_zeros(op.weight[0]) if op.has_bias else None
        if op.kind == "forward":
            return lambda: _FORWARD(images(op.input), weight, bias, *op.options)
        of_input = op.kind == "input_gradient"
        bias_sizes = None if bias is None else [len(bias)]
        wanted = [of_input, not of_input, not of_input and op.has_bias]
        return lambda: _BACKWARD(
            images(op.output), images(op.input), weight, bias_sizes, *op.options, wanted
        )

    calls = {op: call_of(op) for op in operations}
    with torch.no_grad():
        for call in calls.values():
            call()  # torch chooses and compiles kernels in the first call
    return calls
