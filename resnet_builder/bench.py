"""Benchmark of a spec on this machine: interleaved timing of `train` and a baseline.

`train` trains the steady-state spec; the baseline is a plain loop. They take turns, so that a noisy
machine is noisy for both.
"""

import ctypes
import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from time import perf_counter

import torch

from resnet_builder.builder import build
from resnet_builder.data.interfaces import DatasetInfo, Report, Stop, never, silent
from resnet_builder.data.splits import load_data
from resnet_builder.device import describe, free_memory, peak_memory, pick_device
from resnet_builder.errors import Stopped
from resnet_builder.experiment import Experiment
from resnet_builder.memory import estimate_training
from resnet_builder.parts import build_loss, input_info
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import RuntimeConfig, versions
from resnet_builder.spec.recipe import ConstantSchedule, ConstantWarmup, Interval, TrainSpec
from resnet_builder.spec.section import Part
from resnet_builder.system import cpu_seconds
from resnet_builder.training.callbacks import Callback, TrainStart
from resnet_builder.training.finetune import freeze
from resnet_builder.training.openmp import BUSY_CORES, missing_cores, sleep_while_busy
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.trainer import fit

ROUNDS = 5
"""Turns of each contender."""

_MAX_STEP_SHARE = 0.8  # of a turn; steps that take longer are measured with fewer images
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
class Memory:
    """Memory of training.

    Attributes:
        peak_bytes: Peak of the process, or of the device.
        before_bytes: Part of it that was in use before the first step.
    """

    peak_bytes: int
    before_bytes: int


@dataclass(frozen=True, slots=True)
class RecipeLength:
    """Length of the whole training.

    Attributes:
        batch_size: Images of a step.
        epochs: Number of epochs, if it is given so.
        steps: Number of steps; ``None`` where it depends on images that are not read yet.
        seconds: Duration without evaluations; ``None`` likewise, and on a busy machine.
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
        memory: Memory of `train`; ``None`` where nobody counts it.
        recipe: Length of the whole training.
        runtime: Device, precision, threads and the like, as ``env.json`` records them.
        other_cores: Processor cores that other processes used meanwhile; ``None`` where nobody
            counts them.
        is_busy: Whether they took cores from this process, so that its figures are too low.
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
    memory: Memory | None
    recipe: RecipeLength
    runtime: RuntimeConfig
    other_cores: float | None
    is_busy: bool


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
    recipe, device = experiment.train, pick_device(experiment.run.device)
    turn_seconds = seconds / ROUNDS / 2
    with sleep_while_busy():  # as in `fit`
        images, accumulate = find_batch_size(experiment, device, _MAX_STEP_SHARE * turn_seconds)

    def make_baseline() -> _Baseline:
        return _Baseline(experiment, device, images)

    turns = _Turns(device, turn_seconds, make_baseline, warn, report, should_stop)
    turns.run(steady_state(experiment, batch_size=images * accumulate, accumulate=accumulate))
    assert turns.runtime is not None, "the training has started"
    rate = Rate.of(turns.train_seconds, images * accumulate)
    baseline_rate = Rate.of(turns.baseline_seconds, images)
    is_busy = (
        turns.other_cores is not None
        and device.type == "cpu"
        and missing_cores(turns.other_cores) > BUSY_CORES
    )
    steps, duration = _recipe_steps(experiment), None
    if steps is not None and not is_busy:
        duration = steps * recipe.batch_size / rate.images_per_second
    return Benchmark(
        name=experiment.name,
        device=describe(device),
        versions=versions(),
        image=experiment.input_shape,
        batch_size=images * accumulate,
        accumulate=accumulate,
        train=rate,
        baseline=baseline_rate,
        baseline_is=BASELINE,
        speed_up=rate.images_per_second / baseline_rate.images_per_second,
        memory=turns.memory,
        recipe=RecipeLength(recipe.batch_size, recipe.epochs, steps, duration),
        runtime=turns.runtime,
        other_cores=turns.other_cores,
        is_busy=is_busy,
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
    affordable = min(_SYNTHETIC_IMAGES, _SYNTHETIC_BYTES // prod(experiment.input_shape))
    synthetic = Part.model_validate(
        {
            "type": "synthetic",
            "num_classes": experiment.model.num_logits,
            "channels": experiment.input_shape[0],
            "image_size": experiment.model.image_size,
            "train": max(batch_size, affordable),
            "test": 1,
        }
    )
    data = experiment.data.model_copy(
        update={"dataset": synthetic, "validation": 0, "split_seed": 0, "preprocess": ()}
    )
    # Weights hardly move: a step's cost does not depend on them, and nothing diverges.
    tiny_lr = ConstantWarmup(type="constant", lr=1e-6, steps=_ENDLESS - 1)
    train = _of_any_classes(experiment.train).model_copy(
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
    model = experiment.model.model_copy(update={"weights": None})  # a step's cost is the same
    run = experiment.run.model_copy(update={"log": ()})
    update = {"model": model, "data": data, "train": train, "run": run}
    spec = experiment.spec.model_copy(update=update)
    return replace(experiment, spec=spec)


def _of_any_classes(recipe: TrainSpec) -> TrainSpec:
    """Recipe whose loss names no classes: synthetic images have others."""
    loss = recipe.loss
    options = {k: "balanced" if isinstance(v, dict) else v for k, v in loss.options.items()}
    return recipe.model_copy(update={"loss": Part(type=loss.type, **options)})


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
    """Callback of a training, and its ``should_stop``: the baseline has its turns in between."""

    def __init__(
        self,
        device: torch.device,
        seconds: float,
        make_baseline: Callable[[], "_Baseline"],
        warn: Warn,
        report: Report,
        should_stop: Stop,
    ) -> None:
        self._device = device
        self._seconds = seconds
        self._make_baseline = make_baseline
        self._warn = warn
        self._report = report
        self._should_stop = should_stop
        self._steps = self._take_turns()
        self._is_stopped = False
        self.runtime: RuntimeConfig | None = None
        self.memory: Memory | None = None
        self.train_seconds: list[float] = []
        self.baseline_seconds: list[float] = []
        self.other_cores: float | None = None

    def run(self, steady: Experiment) -> None:
        """Train a steady-state experiment for all turns."""
        data = load_data(steady.spec)
        network = build(steady, seed=0, pretrained=False)
        with tempfile.TemporaryDirectory() as folder, suppress(_Over):
            run = RunDirectory.create(Path(folder, "run"))
            fit(network, data, steady, run, callbacks=[self], should_stop=self)
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

    def _take_turns(self) -> Iterator[None]:
        """Yield for each step of the training."""
        meter = PeakMeter(self._device)
        for _ in range(_WARM_UP_STEPS):
            yield
        _synchronize(self._device)
        self.memory = meter.read()
        baseline = self._make_baseline()  # only now: its memory is not the training's
        baseline.train(0)
        before, began = cpu_seconds(), perf_counter()
        for number in range(1, ROUNDS + 1):
            self.baseline_seconds.append(baseline.train(self._seconds))
            self._report("measuring", number, ROUNDS)
            started, steps = perf_counter(), 0
            while steps == 0 or perf_counter() - started < self._seconds:
                yield
                steps += 1
            _synchronize(self._device)
            self.train_seconds.append((perf_counter() - started) / steps)
        if before is not None and (after := cpu_seconds()) is not None:
            by_all, by_this = after[0] - before[0], after[1] - before[1]
            self.other_cores = max(0.0, by_all - by_this) / (perf_counter() - began)
        raise _Over


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class PeakMeter:
    """Meter of the memory that is in use at most, from now on.

    Args:
        device: Device of the training; on the CPU the whole process is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        with suppress(OSError, AttributeError, TypeError):  # no glibc
            ctypes.CDLL(None).malloc_trim(0)  # freed memory is no part of what is in use
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # no Linux, or not allowed to
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; see proc(5)
        self._before = peak_memory(self._device)

    def read(self) -> Memory | None:
        """Return the peak until now; ``None`` where nobody counts it."""
        peak = peak_memory(self._device)
        return None if peak is None or self._before is None else Memory(peak, self._before)


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
        labels = DatasetInfo(experiment.model.num_logits)
        self._loss = build_loss(_of_any_classes(recipe), labels).to(device)
        self._optimizer = build_optimizer(
            self._network,
            recipe.optimizer,
            no_weight_decay=recipe.no_weight_decay,
            fused=False,
            head_lr_multiplier=recipe.head_lr_multiplier,
        )

    def train(self, seconds: float) -> float:
        """Train for some seconds, at least one step; return the seconds of a step."""
        shape = (4, self.images, *self._model.image_shape)  # four batches
        images = torch.randn(shape, device=self._device)
        labels = torch.randint(self._model.num_logits, shape[:2], device=self._device)
        _synchronize(self._device)
        started, steps = perf_counter(), 0
        while steps == 0 or perf_counter() - started < seconds:
            self._optimizer.zero_grad()
            loss = self._loss(self._network(images[steps % 4]), labels[steps % 4])
            torch.autograd.backward(loss)
            self._optimizer.step()
            loss.item()
            steps += 1
        _synchronize(self._device)
        return (perf_counter() - started) / steps


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
