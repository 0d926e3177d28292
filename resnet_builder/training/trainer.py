"""Trainer: the training loop, from a network and data to a finished run."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic

import torch
from torch import Tensor, nn

from resnet_builder.data.interfaces import AUGMENTATIONS, Stop, never
from resnet_builder.data.loader import Pipeline, TrainLoader
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import describe, fits
from resnet_builder.errors import NonFiniteError, Stopped, StorageError, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import storage_errors
from resnet_builder.runs.records import (
    Comparison,
    MetricsLog,
    MetricsRow,
    ResultRecord,
    RuntimeConfig,
    versions,
)
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import PublishedSpec
from resnet_builder.training.callbacks import (
    Callback,
    CallbackList,
    LogFile,
    Progress,
    TrainStart,
    evaluation_row,
)
from resnet_builder.training.checkpoint import (
    CheckpointManager,
    TrainState,
    copy_weights,
    set_weights,
)
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    check_batch_size,
)
from resnet_builder.training.ema import Ema
from resnet_builder.training.evaluation import MetricBuffer, Metrics, RunningMean, evaluate_images
from resnet_builder.training.finetune import frozen_tensors, has_unused_parameters
from resnet_builder.training.resources import memory_named
from resnet_builder.training.runtime import MEMORY_FORMATS, resolve_device, resolve_runtime
from resnet_builder.training.schedule import Plan, private_generators
from resnet_builder.training.step import TrainStep
from resnet_builder.weights.file import WeightsHeader, save_weights

REPORT_SECONDS = 1.0
"""Least time between two reads of the metrics, for which the host waits for the device."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Result of a run.

    Attributes:
        record: Contents of ``result.json``.
        test: Metrics of the selected weights on the test images; ``None`` if there are none.
    """

    record: ResultRecord
    test: Metrics | None


def fit(
    model: nn.Module,
    data: DataSplits,
    experiment: Experiment,
    run: RunDirectory,
    *,
    callbacks: Sequence[Callback] = (),
    should_stop: Stop = never,
    allow_inexact: bool = False,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Result:
    """Train a network to the end of its recipe, from the run's newest checkpoint if it has one.

    Args:
        model: The network with its initial weights. It is moved to the device, and holds the
            selected weights afterwards.
        data: The images.
        experiment: The experiment.
        run: The run directory, whose lock the caller holds.
        callbacks: Called on each event.
        should_stop: Polled at every step and at every batch of an evaluation.
        allow_inexact: Whether to resume on a machine that cannot give the same bits.
        ctx: The processes that train, all of which call this. Only the main process uses ``run``
            and ``callbacks``, and the others take its weights.

    Returns:
        The result, which is also in ``result.json``.

    Raises:
        CheckpointError: There are checkpoints, but none is valid.
        DataError: There are fewer training images than a batch has, or the images have changed.
        NonFiniteError: A loss, a gradient or a weight is not finite. Nothing of it was saved.
        ProcessLostError: A process of a distributed run is gone.
        ResourceError: Memory ran out.
        StorageError: The last checkpoint, the weights or the result cannot be written.
        Stopped: ``should_stop`` became true. Resuming goes on from there.
        UsageError: The recipe does not fit the data, or the run cannot be resumed to the same bits.
    """
    recipe = _check_trainable(experiment, data, run, ctx)
    events = _open_callbacks(callbacks, run, ctx)
    device = resolve_device(experiment.run.device, ctx)
    loader = _make_loader(experiment, data, device, ctx)
    plan = Plan(recipe, loader.steps_per_epoch, ctx.world_size)
    runtime = resolve_runtime(
        experiment.run,
        run,
        ctx,
        accumulate=recipe.accumulate,
        allow_inexact=allow_inexact,
        warn=events.on_warning,
    )
    model.to(device).to(memory_format=MEMORY_FORMATS[runtime.memory_format])
    _sync_batch_norms(model, recipe, device, ctx)
    train_step = TrainStep(
        model,
        recipe,
        runtime,
        resize=plan.resize,
        ctx=ctx,
        has_unused=ctx.world_size > 1
        and has_unused_parameters(experiment.network, experiment.input_shape),
    )
    ema = (
        Ema(model, recipe.ema, frozen=frozen_tensors(model, recipe.freeze)) if recipe.ema else None
    )
    averaged_model = ema.model if ema else model
    checkpoints = CheckpointManager(
        run,
        model,
        train_step.optimizer,
        ema,
        data=data,
        plan=plan,
        keep=recipe.keep_checkpoints,
        callbacks=events,
        ctx=ctx,
    )
    state = checkpoints.restore_newest()
    meter = TrainMeter(state, plan, checkpoints, MetricsLog(run), events, ctx)
    events.on_train_start(
        TrainStart(state.step, plan.total_steps, plan.steps_per_epoch, describe(device), runtime)
    )
    with private_generators(device), memory_named(experiment.spec, runtime):
        batches = loader.batches(state.step)
        try:
            while True:
                # Evaluate, also after the last step. A run that was stopped during an evaluation
                # is resumed with that evaluation.
                if plan.evaluates_at(state.step) and state.step > state.evaluated_step:
                    meter.read()
                    metrics = None
                    if data.validation is not None:
                        metrics = evaluate_images(
                            averaged_model,
                            data.validation,
                            data,
                            batch_size=plan.micro_batch_size,
                            precision=runtime.precision,
                            cpu_kernels=runtime.cpu_kernels,
                            should_stop=should_stop,
                            ctx=ctx,
                        )
                    meter.end_interval(metrics)
                    if metrics is not None:
                        is_best = state.update_best(metrics, averaged_model, recipe.early_stop)
                        events.on_evaluate(state.step, "val", metrics, is_best=is_best)
                        if is_best:
                            _save_best_if_possible(run, state, experiment, data, events, ctx)
                if state.step >= plan.total_steps or state.is_stale(recipe.early_stop):
                    break

                # Report, save and stop: in a distributed run, all processes at the same step.
                reads, saves, stops = ctx.any_reduce(
                    meter.is_due, checkpoints.is_due(state), should_stop()
                )
                if reads or saves:
                    meter.read()
                if saves:
                    checkpoints.save_if_possible(state)
                    meter.lap()
                if stops:
                    raise Stopped(f"stopped after step {state.step}")

                # Make one update of the weights. The device is not waited for.
                meter.add(train_step(next(batches), step=state.step, lr=plan.lr(state.step)))
                state.step += 1
                if ema is not None:
                    ema.update(state.step)
        except Stopped:
            meter.read()
            checkpoints.save_if_possible(state)
            raise
        meter.read()
        checkpoints.save(state)
        return finalize(
            model,
            averaged_model,
            data,
            experiment,
            run,
            state,
            plan=plan,
            runtime=runtime,
            callbacks=events,
            should_stop=should_stop,
            ctx=ctx,
        )


class TrainMeter:
    """Metrics of the training steps: collected on the device, read and reported once a second.

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
        self._buffer = MetricBuffer()
        self._since_report = RunningMean(plan.batch_size)
        self._since_evaluation = RunningMean(plan.batch_size)
        self._lap_start = self._reported_at = monotonic()

    @property
    def is_due(self) -> bool:
        """Whether a second has passed since the last read."""
        return monotonic() - self._lap_start >= REPORT_SECONDS

    def add(self, row: Tensor) -> None:
        """Add what a step returned; the device is not waited for."""
        self._buffer.append(row)

    def read(self) -> None:
        """Read the metrics of all steps since the last read, and report them if it is time.

        Raises:
            NonFiniteError: One of the losses or gradients is not finite.
        """
        state, metrics = self._state, self._buffer.read()
        if metrics.first_bad is not None:
            step = state.step - len(metrics.losses) + metrics.first_bad
            raise NonFiniteError(
                f"the loss or the gradient of step {step + 1} is not finite "
                f"(learning rate {self._plan.lr(step):g}); the newest checkpoint is "
                f"{self._checkpoints.newest}; lower the rate, warm up, or clip the gradient"
            )
        # One by one: a resumed run, which reads at other steps, must round to the same sum.
        for loss in metrics.losses:
            state.loss_sum += loss
        state.num_correct += metrics.num_correct
        seconds = self.lap()
        self._since_report.update(metrics, seconds)
        self._since_evaluation.update(metrics, seconds)
        if self._lap_start - self._reported_at >= REPORT_SECONDS and self._since_report.steps:
            self._report()

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
        train_row = MetricsRow(
            event="train",
            step=state.step,
            epoch=self._epoch,
            lr=self._plan.lr(state.step - 1),
            images_per_second=self._since_evaluation.images_per_second,
            seconds=state.seconds,
            train_loss=state.loss_sum / steps,
            train_top1=state.num_correct / (steps * self._plan.batch_size),
        )
        self._write(train_row)
        if validation is not None:
            self._write(evaluation_row("validation", state.step, self._epoch, validation))
            if not math.isfinite(validation.loss):
                self._callbacks.on_warning(
                    f"the validation loss after step {state.step} is not finite"
                )
        state.evaluated_step, state.loss_sum, state.num_correct = state.step, 0.0, 0.0
        self._since_evaluation = RunningMean(self._plan.batch_size)

    def _report(self) -> None:
        step, mean = self._state.step, self._since_report
        self._callbacks.on_progress(
            Progress(
                step=step,
                total_steps=self._plan.total_steps,
                epoch=self._plan.epoch(step),
                lr=self._plan.lr(step - 1),
                loss=mean.loss,
                top1=mean.top1,
                images_per_second=mean.images_per_second,
            )
        )
        self._since_report = RunningMean(self._plan.batch_size)
        self._reported_at = self._lap_start

    def _write(self, row: MetricsRow) -> None:
        """Write a row; training goes on if that fails."""
        if self._ctx.is_main_process:
            with _storage_warnings(self._callbacks):
                self._file.append(row)

    @property
    def _epoch(self) -> int:
        return self._state.step // self._plan.steps_per_epoch


def finalize(
    model: nn.Module,
    averaged_model: nn.Module,
    data: DataSplits,
    experiment: Experiment,
    run: RunDirectory,
    state: TrainState,
    *,
    plan: Plan,
    runtime: RuntimeConfig,
    callbacks: Callback,
    should_stop: Stop,
    ctx: DistributedContext,
) -> Result:
    """Save the last and the selected weights, test the selected ones once, and save the result.

    The selected weights are the best ones on validation; without validation images, the last ones.
    The network holds them afterwards.

    Raises:
        NonFiniteError: A weight is not finite.
        StorageError: The disk is full, read-only or failing.
        Stopped: ``should_stop`` became true.
    """
    last_weights = copy_weights(averaged_model)
    if ctx.is_main_process:
        header = _weights_header(experiment, data, state.step, state.validation)
        save_weights(run.last, last_weights, header)

    step, metrics = (state.best_step, state.best) if state.best else (state.step, {})
    weights = state.best_weights or last_weights
    set_weights(model, weights)
    test = None
    if data.test is not None:
        # Reported accuracies are computed in fp32, whatever the precision of the training.
        test = evaluate_images(
            model,
            data.test,
            data,
            batch_size=plan.micro_batch_size,
            precision="fp32",
            cpu_kernels=runtime.cpu_kernels,
            should_stop=should_stop,
            ctx=ctx,
        )
        metrics = {**metrics, **test.named("test")}
        if ctx.is_main_process:
            epoch = step // plan.steps_per_epoch
            MetricsLog(run).append(evaluation_row("test", step, epoch, test))
        callbacks.on_evaluate(step, "test", test, is_best=False)
    if ctx.is_main_process:
        save_weights(run.best, weights, _weights_header(experiment, data, step, metrics))

    result = ctx.run_on_main(
        partial(_save_result, model, data, experiment, run, state, runtime, test)
    )
    callbacks.on_train_end(result)
    return result


def _save_result(
    model: nn.Module,
    data: DataSplits,
    experiment: Experiment,
    run: RunDirectory,
    state: TrainState,
    runtime: RuntimeConfig,
    test: Metrics | None,
) -> Result:
    """Write ``result.json``, which marks the run as finished."""
    with storage_errors("read", run.spec):
        digest = hashlib.sha256(run.spec.read_bytes()).hexdigest()
    has_best = state.best_step > 0
    images = state.step * experiment.train.batch_size
    channels, size, _ = experiment.input_shape
    record = ResultRecord(
        spec_sha256=digest,
        seed=experiment.train.seed,
        steps=state.step,
        selected_on="val" if has_best else "none",
        selected_step=state.best_step if has_best else state.step,
        val_top1=state.best.get("val.top1"),
        test_top1=test and test.top1,
        test_top5=test and test.top5,
        test_top1_by_class=test and _by_class(test, data.classes),
        parameters=count_parameters(model),
        macs=count_macs(experiment.network, channels, size),
        seconds=state.seconds,
        images_per_second=images / max(state.seconds, 1e-9),
        device=describe(next(model.parameters()).device),
        precision=runtime.precision,
        versions=versions(),
        published=_compare(experiment.spec.published, test),
    )
    record.write(run.result)
    return Result(record, test)


def _by_class(test: Metrics, classes: tuple[str, ...]) -> dict[str, float]:
    pairs = zip(classes, test.per_class, strict=True)
    return {name: top1 for name, top1 in pairs if top1 is not None}


def _compare(published: PublishedSpec | None, test: Metrics | None) -> Comparison | None:
    """Compare the test accuracies with the published ones, where both are known."""
    if published is None:
        return None
    return Comparison(
        source=published.source,
        test_top1=published.test_top1,
        test_top1_difference=_difference(test.top1 if test else None, published.test_top1),
        test_top5=published.test_top5,
        test_top5_difference=_difference(test.top5 if test else None, published.test_top5),
    )


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _save_best_if_possible(
    run: RunDirectory,
    state: TrainState,
    experiment: Experiment,
    data: DataSplits,
    callbacks: Callback,
    ctx: DistributedContext,
) -> None:
    """Save the best weights so far; training goes on if that fails."""
    if ctx.is_main_process:
        header = _weights_header(experiment, data, state.best_step, state.best)
        with _storage_warnings(callbacks):
            save_weights(run.best, state.best_weights, header)


def _weights_header(
    experiment: Experiment, data: DataSplits, step: int, metrics: Mapping[str, float]
) -> WeightsHeader:
    return WeightsHeader(
        spec=dump_spec(experiment.spec),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        preprocess=experiment.data.preprocess,
        metrics=metrics,
        step=step,
    )


@contextmanager
def _storage_warnings(callbacks: Callback) -> Iterator[None]:
    """Turn an error of the disk into a warning."""
    try:
        yield
    except StorageError as error:
        callbacks.on_warning(str(error))


def _check_trainable(
    experiment: Experiment, data: DataSplits, run: RunDirectory, ctx: DistributedContext
) -> TrainSpec:
    """Return the recipe.

    Raises:
        UsageError: There is nothing to train, or nothing to train with.
    """
    given = (dump_spec(experiment.spec), data.fingerprint, data.validation_indices)
    if ctx.broadcast_object(given) != given:
        raise UsageError(
            f"process {ctx.rank} was given another spec, or other images, than process 0"
        )
    if run.is_finished:
        raise UsageError(f"{run.path} is already complete")
    if experiment.train.early_stop is not None and data.validation is None:
        raise UsageError("train.early_stop: it needs validation images; set data.validation")
    check_batch_size(experiment.train.batch_size, experiment.train.accumulate, ctx)
    return experiment.train


def _open_callbacks(
    callbacks: Sequence[Callback], run: RunDirectory, ctx: DistributedContext
) -> CallbackList:
    if not ctx.is_main_process:
        return CallbackList([])
    return CallbackList([LogFile(run.log, CallbackList(callbacks).on_warning), *callbacks])


def _sync_batch_norms(
    model: nn.Module, recipe: TrainSpec, device: torch.device, ctx: DistributedContext
) -> None:
    """Replace batch norms by SyncBatchNorm, if the recipe asks for it.

    Raises:
        UsageError: The device is not CUDA, the only one that SyncBatchNorm supports.
    """
    if not recipe.sync_norm or ctx.world_size == 1:
        return
    if device.type != "cuda":
        raise UsageError(
            f"train.sync_norm: synchronised batch norm needs CUDA, and this run trains on "
            f"'{device.type}'; set it to false"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _make_loader(
    experiment: Experiment, data: DataSplits, device: torch.device, ctx: DistributedContext
) -> TrainLoader:
    seed = experiment.train.seed
    augmentations = [
        AUGMENTATIONS.get(part.type)(**part.options) for part in experiment.data.augment
    ]
    images = data.train
    if isinstance(images, InMemoryImages) and fits(images.images.nbytes, device):
        images = images.to(device)  # no batch has to be copied to the device during training
    return TrainLoader(
        images,
        batch_size=experiment.train.batch_size,
        seed=seed,
        pipeline=Pipeline(augmentations, data.mean, data.std, len(data.classes), seed),
        device=device,
        shard=ctx.shard,
    )
