"""Training as the command `train` does it, in turns that are timed."""

import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from resnet_builder.bench.clock import finish
from resnet_builder.bench.memory import Peak, PeakMeter
from resnet_builder.builder import build
from resnet_builder.data.interfaces import Stop
from resnet_builder.data.splits import load_data
from resnet_builder.device import pick_device
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import Callback, TrainStart
from resnet_builder.training.trainer import fit

WARM_UP_STEPS = 3
"""Before the first turn, at least: kernels are made, memory is asked for."""

Interlude = Callable[[], None]
"""What others do between two turns."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How a training did in its turns.

    Attributes:
        start: How it was computed, and why it was compiled or not.
        seconds_per_step: Of each turn, whole steps only.
        peak: The most memory that it held, where that is known.
    """

    start: TrainStart
    seconds_per_step: tuple[float, ...]
    peak: Peak | None


def train_in_turns(
    spec: Spec,
    *,
    rounds: int,
    seconds: float,
    interlude: Callable[[RuntimeConfig], Interlude],
    warn: Warn,
    stop: Stop,
) -> Turns:
    """Train an endless experiment with ``fit``, as the command `train` does, and time its steps.

    Args:
        spec: What to train, without end; see :func:`bench.endless.endless`.
        rounds: How many turns it has.
        seconds: How long each of them, and the warm-up, takes at least.
        interlude: Told once how it is computed, when it is warm; returns what is to be done
            before each turn.
        warn: Told of what training warns of.
        stop: Polled before every step.

    Raises:
        Stopped: ``stop`` became true.
        ResnetBuilderError: What :func:`training.trainer.fit` raises.
    """
    assert spec.train is not None, "a spec to train has a recipe"
    device = pick_device(spec.run.device)
    splits = load_data(spec)
    network = build(spec, seed=spec.train.seed, pretrained=False)
    timer = _Timer(device, rounds, seconds, interlude, stop)
    with tempfile.TemporaryDirectory() as folder, suppress(_Over):
        run = RunDirectory.create(Path(folder, "run"))
        fit(network, splits, spec, run, callbacks=[_Listener(timer, warn)], should_stop=timer)
    if timer.is_stopped:
        raise Stopped("stopped while measuring")
    return timer.turns()


class _Over(Exception):
    """Raised where the next step would begin: unlike :class:`Stopped`, it has nothing saved."""


class _Timer:
    """Polled before every step of a training: times its turns, and lets others have theirs."""

    def __init__(
        self,
        device: torch.device,
        rounds: int,
        seconds: float,
        interlude: Callable[[RuntimeConfig], Interlude],
        stop: Stop,
    ) -> None:
        self._device = device
        self._rounds = rounds
        self._seconds = seconds
        self._interlude = interlude
        self._stop = stop
        self._steps = self._take_turns()
        self._times: list[float] = []
        self._peak: Peak | None = None
        self.start: TrainStart | None = None
        self.is_stopped = False

    def __call__(self) -> bool:
        """Let the training take a step.

        Raises:
            _Over: All turns were taken, or the user asked for a stop.
        """
        self.is_stopped = self._stop()
        if self.is_stopped:
            raise _Over
        next(self._steps)
        return False

    def turns(self) -> Turns:
        """Return what was measured."""
        assert self.start is not None, "it has started"
        return Turns(self.start, tuple(self._times), self._peak)

    def _take_turns(self) -> Generator[None, None, None]:
        """Yield wherever the training is to take a step."""
        assert self.start is not None, "it has started"
        meter = PeakMeter(self._device)
        yield from self._turn(least=WARM_UP_STEPS)
        self._peak = meter.peak()
        interlude = self._interlude(self.start.runtime)
        for _ in range(self._rounds):
            interlude()
            self._times.append((yield from self._turn()))
        raise _Over

    def _turn(self, least: int = 1) -> Generator[None, None, float]:
        """Yield for each step of a turn; return the seconds of a step."""
        finish(self._device)
        started, steps = perf_counter(), 0
        while steps < least or perf_counter() - started < self._seconds:
            yield
            steps += 1
        finish(self._device)
        return (perf_counter() - started) / steps


class _Listener(Callback):
    """Tells the timer how it is computed, and the user of warnings."""

    def __init__(self, timer: _Timer, warn: Warn) -> None:
        self._timer = timer
        self._warn = warn

    def on_train_start(self, start: TrainStart) -> None:
        """Take note of it."""
        self._timer.start = start

    def on_warning(self, message: str) -> None:
        """Pass it on."""
        self._warn(message)
