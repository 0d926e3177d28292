"""Trainer: the training loop, from a network and data to a finished run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from resnet_builder.data.interfaces import ImageSource, Stop, never
from resnet_builder.data.loader import train_loader
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import MEMORY_FORMATS, Precision
from resnet_builder.errors import DataError, NonFiniteError, ResourceError, Stopped
from resnet_builder.experiment import Experiment
from resnet_builder.losses import Loss
from resnet_builder.memory import out_of_memory_explained
from resnet_builder.parts import build_loss
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import EnvRecord, MetricsLog, ResultRecord, RuntimeConfig
from resnet_builder.training.callbacks import (
    Callback,
    TrainStart,
    exceptions_told,
    storage_warnings,
)
from resnet_builder.training.checkpoint import CheckpointManager
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.ema import Ema, slow_average
from resnet_builder.training.evaluation import evaluate_images
from resnet_builder.training.finetune import frozen_tensors, has_unused_parameters
from resnet_builder.training.meter import TrainMeter, evaluation_row
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.openmp import sleep_while_busy
from resnet_builder.training.result import (
    Result,
    result_record,
    save_predictions,
    weights_header,
)
from resnet_builder.training.resume import check_steps_left, prepare_resumption, record_resumption
from resnet_builder.training.runtime import compile_errors_explained, resolve_device
from resnet_builder.training.schedule import Plan, private_generators
from resnet_builder.training.state import TrainState, copy_weights, set_weights
from resnet_builder.training.step import TrainStep
from resnet_builder.training.tracking import run_callbacks
from resnet_builder.weights.file import save_weights


def fit(
    model: nn.Module,
    data: DataSplits,
    experiment: Experiment,
    run: RunDirectory,
    *,
    callbacks: Sequence[Callback] = (),
    should_stop: Stop = never,
    allow_spec_change: bool = False,
    allow_inexact: bool = False,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Result:
    """Train a network to the end of its recipe, from the run's newest checkpoint if it has one.

    A run that has its result trains on if the recipe is longer now; the result is kept.

    Args:
        model: The network with its initial weights. It is moved to the device, and holds the
            selected weights afterwards.
        data: The images.
        experiment: The experiment.
        run: The run directory, whose lock the caller holds.
        callbacks: Called on each event.
        should_stop: Polled at every step and at every batch of an evaluation.
        allow_spec_change: Whether to resume with another recipe, other plugins or data elsewhere.
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
    recipe = experiment.train
    events = run_callbacks(callbacks, experiment, run, ctx)

    # Set up, in the order in which one thing needs the other. The run directory is only read.
    device = resolve_device(experiment.run.device, ctx)
    loader = train_loader(experiment.data, recipe, data, device=device, shard=ctx.shard)
    plan = Plan(recipe, loader.steps_per_epoch, ctx.world_size)
    resumption = prepare_resumption(
        run,
        experiment,
        data,
        ctx,
        allow_spec_change=allow_spec_change,
        allow_inexact=allow_inexact,
    )
    env = resumption.env
    loss = build_loss(recipe, data.info)
    train_step = _train_step(model, loss, experiment, env.runtime, plan, device, ctx)
    ema = None
    if recipe.ema is not None:
        ema = Ema(model, recipe.ema, frozen=frozen_tensors(model, recipe.freeze))
    checkpoints = CheckpointManager(
        run,
        model,
        train_step.optimizer,
        ema,
        provenance=resumption.provenance,
        changes=resumption.changes,
        plan=plan,
        callbacks=events,
        ctx=ctx,
    )
    state = checkpoints.restore(resumption.checkpoint)  # of step 0, if there is no checkpoint
    check_steps_left(run, plan, state)

    # The training goes on for certain: from here on the run directory may change.
    if ctx.is_main_process:
        record_resumption(run, resumption, plan, state, events)
    meter = TrainMeter(state, plan, checkpoints, MetricsLog(run), events, ctx)
    training = Training(
        model=model,
        averaged_model=ema.model if ema else model,
        data=data,
        experiment=experiment,
        run=run,
        plan=plan,
        env=env,
        callbacks=events,
        should_stop=should_stop,
        ctx=ctx,
    )
    if recipe.ema is not None and (warning := slow_average(recipe.ema, plan.total_steps)):
        events.on_warning(warning)
    events.on_train_start(
        TrainStart(state.step, plan.total_steps, plan.steps_per_epoch, env.device, env.runtime)
    )

    with (
        exceptions_told(events),
        sleep_while_busy(events.on_warning),
        private_generators(device),
        out_of_memory_explained(experiment, env.runtime.precision, processes=ctx.world_size),
        compile_errors_explained(should_stop),
    ):
        batches = loader.batches(state.step)
        try:
            while True:
                # Evaluate, also after the last step. It stands at the top of the loop because a
                # run that was stopped during an evaluation is resumed with that evaluation.
                if plan.evaluates_at(state.step) and state.step > state.evaluated_step:
                    validate(training, state, meter)
                if state.step >= plan.total_steps or state.is_stale(recipe.early_stop):
                    break

                # Report, save and stop; in a distributed run, all processes at the same step.
                batch = meter.next_batch(batches)
                reads, saves, stops = ctx.any_reduce(
                    meter.is_due, checkpoints.is_due(state), batch is None or should_stop()
                )
                if reads or saves:
                    meter.read()
                if saves:
                    checkpoints.save_if_possible(state)
                    meter.lap()
                if stops or batch is None:
                    raise Stopped

                # Update the weights. Nothing here waits for the device.
                meter.add(train_step(batch, step=state.step, lr=plan.lr(state.step, state.history)))
                state.step += 1
                state.images += recipe.batch_size
                if ema is not None:
                    ema.update(state.step)
        except Stopped as error:
            meter.read()
            meter.report()
            checkpoints.save_if_possible(state)
            saved = ", which is saved" if checkpoints.holds(state) else ""
            raise Stopped(f"stopped after step {state.step}{saved}") from error
        except (DataError, ResourceError):  # the next batch cannot be read; this step is done
            if ctx.world_size == 1:
                meter.read()
                checkpoints.save_if_possible(state)
            raise
        meter.read()
        meter.report()  # displays end at the last step
        checkpoints.save(state)
        return finalize(training, state)


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Parts of a training that are the same at every step.

    Attributes:
        model: Network that is trained.
        averaged_model: Network that is evaluated: the moving average, or ``model`` itself.
        data: Images.
        experiment: Experiment.
        run: Run directory.
        plan: Plan of steps.
        env: Device, precision, threads and the like.
        callbacks: Callbacks; none in a process that is not the main process.
        should_stop: Polled at every batch of an evaluation.
        ctx: Processes that train.
    """

    model: nn.Module
    averaged_model: nn.Module
    data: DataSplits
    experiment: Experiment
    run: RunDirectory
    plan: Plan
    env: EnvRecord
    callbacks: Callback
    should_stop: Stop
    ctx: DistributedContext

    @property
    def precision(self) -> Precision:
        """Precision of training, and of the validation during it."""
        return self.env.runtime.precision

    def evaluate(self, model: nn.Module, images: ImageSource, precision: Precision) -> Metrics:
        """Evaluate a network on a split."""
        metrics = evaluate_images(
            model,
            images,
            self.data,
            batch_size=self.plan.micro_batch_size,
            precision=precision,
            cpu_kernels=self.env.runtime.cpu_kernels is not None,
            should_stop=self.should_stop,
            ctx=self.ctx,
        )
        monitor = self.experiment.train.monitor
        return replace(metrics, monitor=monitor and monitor.removeprefix("val."))

    def save_weights(
        self, path: Path, weights: Mapping[str, Tensor], step: int, metrics: Mapping[str, float]
    ) -> None:
        """Save weights and what is known of them, in the main process."""
        if self.ctx.is_main_process:
            header = weights_header(self.experiment, self.data, step, metrics)
            save_weights(path, weights, header)


def validate(training: Training, state: TrainState, meter: TrainMeter) -> None:
    """Evaluate the weights on the validation images, and save them if they are the best so far.

    Raises:
        NonFiniteError: A loss, a gradient or a weight is not finite.
        Stopped: The user asked for a stop.
    """
    meter.read()
    if training.data.validation is None:
        meter.end_interval(None)
        return
    model, events = training.averaged_model, training.callbacks
    metrics = training.evaluate(model, training.data.validation, training.precision)
    meter.end_interval(metrics)
    is_best = state.update_best(metrics, model, training.experiment.train.early_stop)
    events.on_evaluate(state.step, "val", metrics, is_best=is_best)
    if is_best:
        recorded = state.best if training.precision == "fp32" else {}
        with storage_warnings(events):  # the last save, in finalize, must not fail
            training.save_weights(training.run.best, state.best_weights, state.best_step, recorded)


def finalize(training: Training, state: TrainState) -> Result:
    """Save the last and the selected weights, test the selected ones once, and save the result.

    The selected weights are the best ones on validation; without validation images, the last ones.
    The network holds them afterwards.

    Raises:
        NonFiniteError: A weight is not finite, or what the network computes.
        StorageError: The disk is full, read-only or failing.
        Stopped: The user asked for a stop. The state is saved already, so that nothing is lost.
    """
    run, model, events = training.run, training.model, training.callbacks
    last_weights = copy_weights(training.averaged_model)
    last_metrics = state.validation if training.precision == "fp32" else {}
    training.save_weights(run.last, last_weights, state.step, last_metrics)
    step, weights = state.best_step or state.step, state.best_weights or last_weights
    set_weights(model, weights)

    def evaluate_selected(split: Literal["val", "test"], images: ImageSource) -> Metrics:
        # Recorded metrics are computed in fp32, as `evaluate` does, whatever training computed in.
        metrics = training.evaluate(model, images, "fp32")
        if not metrics.has_predictions:
            raise NonFiniteError(
                f"the network's logits are not finite for any {split} image, in evaluation mode; "
                "lower the rate, warm up, or clip the gradient"
            )
        if training.ctx.is_main_process:
            epoch = step // training.plan.steps_per_epoch
            MetricsLog(run).append(evaluation_row(split, step, epoch, metrics))
        events.on_evaluate(step, split, metrics, is_best=False)
        return metrics

    validation, test = state.best_metrics, None
    if training.data.validation is not None:
        if training.precision != "fp32" or not state.best:
            validation = evaluate_selected("val", training.data.validation)
            state.best = validation.named("val")
        elif training.data.test is None and validation is None:  # resumed behind the best weights
            validation = training.evaluate(model, training.data.validation, "fp32")
    if training.data.test is not None:
        test = evaluate_selected("test", training.data.test)
    metrics = {**state.best, **(test.named("test") if test else {})}
    training.save_weights(run.best, weights, step, metrics)
    if training.ctx.is_main_process:
        save_predictions(run.predictions, training.data, step, validation=validation, test=test)

    def write_record() -> ResultRecord:
        record = result_record(
            training.experiment,
            state,
            test,
            planned_steps=training.plan.total_steps,
            classes=training.data.classes,
            env=training.env,
        )
        record.write(run.result)  # it marks the run as finished
        return record

    record = training.ctx.run_on_main(write_record)
    result = Result(record, test)
    events.on_train_end(result)
    return result


def _train_step(
    model: nn.Module,
    loss: Loss,
    experiment: Experiment,
    runtime: RuntimeConfig,
    plan: Plan,
    device: torch.device,
    ctx: DistributedContext,
) -> TrainStep:
    """Move a network and a loss to their device, and make the training step."""
    recipe = experiment.train
    model.to(device).to(memory_format=MEMORY_FORMATS[runtime.memory_format])
    if recipe.sync_norm and ctx.world_size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    has_unused = ctx.world_size > 1 and has_unused_parameters(
        experiment.network, experiment.input_shape
    )
    return TrainStep(
        model, loss.to(device), recipe, runtime, resize=plan.resize, ctx=ctx, has_unused=has_unused
    )
