"""The loop: steps, evaluations and checkpoints in their order, until the end or until told."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Protocol

from resnet_builder.data.interfaces import Batch, Stop
from resnet_builder.errors import NonFiniteError, Stopped, StorageError
from resnet_builder.runs.records import MetricsLog
from resnet_builder.spec.recipe import EarlyStopSpec
from resnet_builder.training.callbacks import Observer, Progress
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.plan import Plan
from resnet_builder.training.rows import evaluation_row, train_row
from resnet_builder.training.saving import CheckpointManager
from resnet_builder.training.schedule import Schedule
from resnet_builder.training.state import State
from resnet_builder.training.step import TrainStep
from resnet_builder.training.tally import Tally

REPORT_SECONDS = 1.0
"""Between two readings of the device, and between two reports to the observer, at least."""


class Batches(Protocol):
    """Training batches by step, for ever."""

    def starting_at(self, step: int) -> Iterator[Batch]:
        """Yield the batches of this step and those after it."""


@dataclass
class _Stretch:
    """Some steps in a row of this process, and how long they took.

    Attributes:
        steps: How many.
        loss: Sum of their losses.
        hits: Training images answered right.
        seconds: Spent on them.
    """

    steps: int = 0
    loss: float = 0.0
    hits: float = 0.0
    seconds: float = 0.0

    def add(self, losses: tuple[float, ...], hits: float, seconds: float) -> None:
        self.steps += len(losses)
        self.loss += sum(losses)
        self.hits += hits
        self.seconds += seconds

    def images_per_second(self, batch_size: int) -> float:
        return self.steps * batch_size / max(self.seconds, 1e-9)


@dataclass
class Loop:
    """Trains a state from the step that it is at.

    Attributes:
        state: What is trained.
        plan: What is due when.
        schedule: The learning rate of each step, for reports.
        train_step: Takes one step.
        batches: What it learns from.
        validate: Evaluates the weights; ``None`` if there is nothing to evaluate them on.
        early_stop: When to give up.
        saver: Saves checkpoints.
        deliver_best: Publishes weights that did best.
        rows: Where metrics are written.
        observer: Told what happens.
        stop: Polled at every step.
        ctx: The processes that train; all read, save and stop after the same step.
    """

    state: State
    plan: Plan
    schedule: Schedule
    train_step: TrainStep
    batches: Batches
    validate: Callable[[], Evaluation] | None
    early_stop: EarlyStopSpec | None
    saver: CheckpointManager
    deliver_best: Callable[[], None]
    rows: MetricsLog
    observer: Observer
    stop: Stop
    ctx: DistributedContext = SINGLE_PROCESS

    _tally: Tally = field(default_factory=Tally, init=False)
    _unreported: _Stretch = field(default_factory=_Stretch, init=False)
    _unevaluated: _Stretch = field(default_factory=_Stretch, init=False)
    _marked: float = field(default_factory=lambda: monotonic(), init=False)
    _reported: float = field(default_factory=lambda: monotonic(), init=False)

    def run(self) -> None:
        """Train to the end and save.

        Raises:
            NonFiniteError: A loss, a gradient or a weight is not finite; nothing of it was saved.
            StorageError: The last checkpoint cannot be saved.
            Stopped: ``stop`` became true; what was done until then is saved if it can be.
        """
        try:
            self._train()
        except Stopped:
            self._read()
            self.saver.save_if_possible()
            raise
        self._read()
        self.saver.save()

    def _train(self) -> None:
        batches = self.batches.starting_at(self.state.counters.step)
        while True:
            self._evaluate_if_due()
            if self._is_over():
                break
            stops, saves, reads = self.ctx.any_reduce(
                self.stop(), self.saver.is_due, monotonic() - self._marked >= REPORT_SECONDS
            )
            if reads or saves:
                self._read()
            if saves:
                self.saver.save_if_possible()
                self._elapse()
            if stops:
                raise Stopped(f"stopped after step {self.state.counters.step}")
            self._step(next(batches))

    def _is_over(self) -> bool:
        counters = self.state.counters
        gives_up = self.early_stop is not None and counters.stale >= self.early_stop.patience
        return counters.step >= self.plan.total_steps or gives_up

    def _step(self, batch: Batch) -> None:
        counters = self.state.counters
        self._tally.add(self.train_step(counters.step, batch))
        counters.step += 1
        if self.state.ema is not None:
            self.state.ema.update(counters.step)

    def _read(self) -> None:
        """Bring to the host what the steps since the last time reported.

        Raises:
            NonFiniteError: One of them was bad.
        """
        reading = self._tally.read()
        counters = self.state.counters
        if reading.first_bad is not None:
            self._refuse(counters.step - len(reading.losses) + reading.first_bad)
        for loss in reading.losses:  # one by one: no sum depends on when it was read
            counters.loss += loss
        counters.hits += reading.hits
        seconds = self._elapse()
        for stretch in (self._unreported, self._unevaluated):
            stretch.add(reading.losses, reading.hits, seconds)
        self._report_if_due()

    def _refuse(self, step: int) -> None:
        raise NonFiniteError(
            f"the loss or the gradient of step {step + 1} is not finite "
            f"(learning rate {self.schedule(step):g}); the newest checkpoint is "
            f"{self.saver.newest}; lower the rate, warm up, or clip the gradient"
        )

    def _elapse(self) -> float:
        """Count the time since this was called last; return it, in seconds."""
        now = monotonic()
        seconds, self._marked = now - self._marked, now
        self.state.counters.seconds += seconds
        return seconds

    def _report_if_due(self) -> None:
        stretch = self._unreported
        if self._marked - self._reported < REPORT_SECONDS or not stretch.steps:
            return
        step, batch_size = self.state.counters.step, self.plan.batch_size
        self._unreported, self._reported = _Stretch(), self._marked
        self.observer.progressed(
            Progress(
                step=step,
                total_steps=self.plan.total_steps,
                epoch=self.plan.epoch(step),
                lr=self.schedule(step - 1),
                loss=stretch.loss / stretch.steps,
                top1=stretch.hits / (stretch.steps * batch_size),
                images_per_second=stretch.images_per_second(batch_size),
            )
        )

    def _evaluate_if_due(self) -> None:
        counters = self.state.counters
        if counters.step == counters.evaluated or not self.plan.evaluates_after(counters.step):
            return
        self._read()
        evaluation = None if self.validate is None else self.validate()
        self._elapse()
        self._write_rows(evaluation)
        counters.evaluated, counters.loss, counters.hits = counters.step, 0.0, 0.0
        self._unevaluated = _Stretch()
        if evaluation is not None:
            self._note(evaluation)

    def _note(self, evaluation: Evaluation) -> None:
        min_delta = 0.0 if self.early_stop is None else self.early_stop.min_delta
        best = self.state.note(evaluation, min_delta)
        step = self.state.counters.step
        self.observer.evaluated(step, "val", evaluation, best=best)
        if not math.isfinite(evaluation.loss):
            self.observer.warned(f"the validation loss after step {step} is not finite")
        if best:
            self._tolerate(self.deliver_best)

    def _write_rows(self, evaluation: Evaluation | None) -> None:
        step = self.state.counters.step
        speed = self._unevaluated.images_per_second(self.plan.batch_size)
        rows = [train_row(self.state.counters, self.plan, self.schedule(step - 1), speed)]
        if evaluation is not None:
            rows.append(evaluation_row("validation", step, self.plan, evaluation))
        for row in rows:
            self._tolerate(partial(self.rows.append, row))

    def _tolerate(self, write: Callable[[], None]) -> None:
        """Write what training can go on without, if it is this process that writes."""
        if not self.ctx.is_main_process:
            return
        try:
            write()
        except StorageError as error:
            self.observer.warned(str(error))
