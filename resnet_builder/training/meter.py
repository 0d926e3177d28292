"""Training meter: metrics of the steps, collected on the device and reported to the callbacks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import torch
from torch import Tensor

from resnet_builder.data.interfaces import Batch
from resnet_builder.errors import NonFiniteError, Stopped
from resnet_builder.runs.records import MetricsLog, MetricsRow
from resnet_builder.training.callbacks import Callback, Progress, storage_warnings
from resnet_builder.training.checkpoint import CheckpointManager
from resnet_builder.training.distributed import DistributedContext
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.schedule import Plan
from resnet_builder.training.state import TrainState

REPORT_SECONDS = 1.0
"""Least time between two reads of the metrics, for which the host waits for the device."""


@dataclass
class RunningMean:
    """Running means of training metrics over some steps.

    Attributes:
        batch_size: Images per step.
        steps: Number of steps.
    """

    batch_size: int
    steps: int = 0
    _loss: float = 0.0
    _num_correct: float = 0.0
    _seconds: float = 0.0

    def update(self, rows: list[list[float]], seconds: float) -> None:
        """Add what some steps returned, and the time that they took."""
        self.steps += len(rows)
        self._loss += sum(loss for loss, _, _ in rows)
        self._num_correct += sum(num_correct for _, num_correct, _ in rows)
        self._seconds += seconds

    @property
    def loss(self) -> float:
        """Mean training loss."""
        return self._loss / self.steps

    @property
    def top1(self) -> float:
        """Training accuracy."""
        return self._num_correct / (self.steps * self.batch_size)

    @property
    def images_per_second(self) -> float:
        """Training speed."""
        return self.steps * self.batch_size / max(self._seconds, 1e-9)

    def share(self, seconds: float) -> float:
        """Return the fraction of the time of these steps that some seconds are."""
        return min(1.0, seconds / max(self._seconds, 1e-9))


class TrainMeter:
    """Metrics of the training steps: collected on the device, read and reported once a second.

    Reading waits for the device. Waiting at every step would leave it idle between steps.

    Args:
        state: State of the training, which counts loss, correct predictions and time.
        plan: Lengths of the training.
        checkpoints: The checkpoints, for messages.
        file: ``metrics.jsonl``.
        callbacks: Called with the progress.
        ctx: The processes. Only the main process writes the file.
    """

    def __init__(
        self,
        state: TrainState,
        plan: Plan,
        checkpoints: CheckpointManager,
        file: MetricsLog,
        callbacks: Callback,
        ctx: DistributedContext,
    ) -> None:
        self._state = state
        self._plan = plan
        self._checkpoints = checkpoints
        self._file = file
        self._callbacks = callbacks
        self._ctx = ctx
        self._rows: list[Tensor] = []  # of the steps since the last read, on the device
        self._since_report = RunningMean(plan.batch_size)
        self._since_evaluation = RunningMean(plan.batch_size)
        self._data_seconds = 0.0  # since the last evaluation
        self._lap_start = self._reported_at = monotonic()

    @property
    def is_due(self) -> bool:
        """Whether a second has passed since the last read."""
        return monotonic() - self._lap_start >= REPORT_SECONDS

    def next_batch(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch; ``None`` if the user asked for a stop while it was waited for."""
        started = monotonic()
        try:
            return next(batches)
        except Stopped:
            return None
        finally:
            self._data_seconds += monotonic() - started

    def add(self, row: Tensor) -> None:
        """Add what a :class:`~resnet_builder.training.step.TrainStep` returned."""
        self._rows.append(row)

    def read(self) -> None:
        """Read the metrics of all steps since the last read, and report them if it is time.

        Raises:
            NonFiniteError: One of the losses or gradients is not finite.
        """
        state = self._state
        rows = torch.stack(self._rows).tolist() if self._rows else []
        self._rows.clear()
        for step, (loss, num_correct, failed) in enumerate(rows, start=state.step - len(rows)):
            if failed:
                advice = "lower the rate, warm up, or clip the gradient"
                if step == 0:  # no weight was changed yet
                    advice = "the rate is not the cause: check initial weights and data.normalize"
                raise NonFiniteError(
                    f"the loss or the gradient of step {step + 1} is not finite (learning rate "
                    f"{self._plan.lr(step, state.history):g}); {self._checkpoints.newest}; {advice}"
                )
            # One by one: a resumed run, which reads at other steps, must round to the same sum.
            state.loss_sum += loss
            state.num_correct += num_correct
        seconds = self.lap()
        self._since_report.update(rows, seconds)
        self._since_evaluation.update(rows, seconds)
        if self._lap_start - self._reported_at >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Report the progress, if there are steps that were read and not reported."""
        step, mean = self._state.step, self._since_report
        if mean.steps == 0:
            return
        self._callbacks.on_progress(
            Progress(
                step=step,
                total_steps=self._plan.total_steps,
                epoch=self._plan.epoch(step),
                lr=self._plan.lr(step - 1, self._state.history),
                loss=mean.loss,
                top1=mean.top1,
                images_per_second=mean.images_per_second,
            )
        )
        self._since_report = RunningMean(self._plan.batch_size)
        self._reported_at = self._lap_start

    def lap(self) -> float:
        """Add the time since the last call to the training time; return it, in seconds."""
        now = monotonic()
        seconds, self._lap_start = now - self._lap_start, now
        self._state.seconds += seconds
        return seconds

    def end_interval(self, validation: Metrics | None) -> None:
        """Write the rows of the steps since the last evaluation, and of this evaluation."""
        self.lap()
        state = self._state
        steps = state.step - state.evaluated_step
        epoch = state.step // self._plan.steps_per_epoch
        train_row = MetricsRow(
            event="train",
            step=state.step,
            epoch=epoch,
            lr=self._plan.lr(state.step - 1, state.history),
            images_per_second=self._since_evaluation.images_per_second,
            data_share=self._since_evaluation.share(self._data_seconds),
            seconds=state.seconds,
            train_loss=state.loss_sum / steps,
            train_top1=state.num_correct / (state.images - state.evaluated_images),
        )
        self._write(train_row)
        if validation is not None:
            self._write(evaluation_row("val", state.step, epoch, validation))
            if not math.isfinite(validation.loss):
                self._callbacks.on_warning(
                    f"the validation loss after step {state.step} is not finite"
                )
            if self._plan.needs_history:
                state.history[state.step] = validation.named("val")
        state.evaluated_step, state.evaluated_images = state.step, state.images
        state.loss_sum, state.num_correct = 0.0, 0.0
        self._since_evaluation = RunningMean(self._plan.batch_size)
        self._data_seconds = 0.0

    def _write(self, row: MetricsRow) -> None:
        """Write a row; training goes on if that fails."""
        if self._ctx.is_main_process:
            with storage_warnings(self._callbacks):
                self._file.append(row)


def evaluation_row(
    split: Literal["val", "test"], step: int, epoch: int, metrics: Metrics
) -> MetricsRow:
    """Make the row of an evaluation of the weights after ``step`` steps."""
    event = "validation" if split == "val" else "test"
    row = {"event": event, "step": step, "epoch": epoch, "precision": metrics.precision}
    return MetricsRow.model_validate({**row, **metrics.named(split)})
