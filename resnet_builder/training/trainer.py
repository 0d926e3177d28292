"""Trainer: the training loop, from a network and data to a finished run."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from resnet_builder.data.interfaces import AUGMENTATIONS, Stop, never
from resnet_builder.data.loader import Pipeline, TrainLoader
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import describe, fits
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.memory import out_of_memory_explained
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import storage_errors
from resnet_builder.runs.records import (
    Comparison,
    MetricsLog,
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
    TrainMeter,
    TrainStart,
    evaluation_row,
    storage_warnings,
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
    sync_batch_norms,
)
from resnet_builder.training.ema import Ema
from resnet_builder.training.evaluation import Metrics, evaluate_images
from resnet_builder.training.finetune import frozen_tensors, has_unused_parameters
from resnet_builder.training.runtime import MEMORY_FORMATS, resolve_device, resolve_runtime
from resnet_builder.training.schedule import Plan, private_generators
from resnet_builder.training.step import TrainStep
from resnet_builder.weights.file import WeightsHeader, save_weights


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

    # Everything that the steps need, in the order in which one thing needs the other.
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
    if recipe.sync_norm:
        sync_batch_norms(model, device, ctx)
    has_unused = ctx.world_size > 1 and has_unused_parameters(
        experiment.network, experiment.input_shape
    )
    train_step = TrainStep(
        model, recipe, runtime, resize=plan.resize, ctx=ctx, has_unused=has_unused
    )
    ema = _make_ema(model, recipe)
    averaged_model = ema.model if ema else model
    evaluate = partial(
        evaluate_images,
        data=data,
        batch_size=plan.micro_batch_size,
        cpu_kernels=runtime.cpu_kernels,
        should_stop=should_stop,
        ctx=ctx,
    )
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
    state = checkpoints.restore_newest()  # of step 0, if there is no checkpoint
    meter = TrainMeter(state, plan, checkpoints, MetricsLog(run), events, ctx)
    events.on_train_start(
        TrainStart(state.step, plan.total_steps, plan.steps_per_epoch, describe(device), runtime)
    )

    with (
        private_generators(device),
        out_of_memory_explained(experiment, runtime.precision, processes=ctx.world_size),
    ):
        batches = loader.batches(state.step)
        try:
            while True:
                # Evaluate, also after the last step. It stands at the top of the loop because a
                # run that was stopped during an evaluation is resumed with that evaluation.
                if plan.evaluates_at(state.step) and state.step > state.evaluated_step:
                    meter.read()
                    metrics = None
                    if data.validation is not None:
                        metrics = evaluate(
                            averaged_model, data.validation, precision=runtime.precision
                        )
                    meter.end_interval(metrics)
                    if metrics is not None:
                        is_best = state.update_best(metrics, averaged_model, recipe.early_stop)
                        events.on_evaluate(state.step, "val", metrics, is_best=is_best)
                        if is_best:
                            _save_best_if_possible(run, state, experiment, data, events, ctx)
                if state.step >= plan.total_steps or state.is_stale(recipe.early_stop):
                    break

                # Report, save and stop; in a distributed run, all processes at the same step.
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

                # Update the weights. Nothing here waits for the device.
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
            evaluate,
            plan,
            runtime,
            events,
            ctx,
        )


def finalize(
    model: nn.Module,
    averaged_model: nn.Module,
    data: DataSplits,
    experiment: Experiment,
    run: RunDirectory,
    state: TrainState,
    evaluate: Callable[..., Metrics],
    plan: Plan,
    runtime: RuntimeConfig,
    callbacks: Callback,
    ctx: DistributedContext,
) -> Result:
    """Save the last and the selected weights, test the selected ones once, and save the result.

    The selected weights are the best ones on validation; without validation images, the last ones.
    The network holds them afterwards.

    Raises:
        NonFiniteError: A weight is not finite.
        StorageError: The disk is full, read-only or failing.
        Stopped: The user asked for a stop. The state is saved already, so that nothing is lost.
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
        test = evaluate(model, data.test, precision="fp32")
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
        test_top1=test.top1 if test else None,
        test_top5=test.top5 if test else None,
        test_top1_by_class=_by_class(test, data.classes) if test else None,
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
        with storage_warnings(callbacks):
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


def _make_ema(model: nn.Module, recipe: TrainSpec) -> Ema | None:
    if recipe.ema is None:
        return None
    return Ema(model, recipe.ema, frozen=frozen_tensors(model, recipe.freeze))


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
