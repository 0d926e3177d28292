"""Training a network, from a spec and data to a finished run."""

from functools import partial

import torch
from torch import nn

from resnet_builder.data.batches import TrainBatches
from resnet_builder.data.interfaces import AUGMENTATIONS, ImageSource, Stop, never
from resnet_builder.data.memory import InMemoryImages
from resnet_builder.data.pipeline import Pipeline
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import describe, fits
from resnet_builder.errors import UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, RuntimeConfig
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import SILENT, Observer, Start
from resnet_builder.training.delivery import Delivery
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    check_batch_size,
)
from resnet_builder.training.ema import Ema
from resnet_builder.training.freezing import frozen_tensors
from resnet_builder.training.log import Logged
from resnet_builder.training.loop import Loop
from resnet_builder.training.plan import Plan, make_plan
from resnet_builder.training.randomness import private_generators
from resnet_builder.training.resizing import make_resizing
from resnet_builder.training.resources import memory_named
from resnet_builder.training.result import Result
from resnet_builder.training.runtime import MEMORY_FORMATS, resolve_device, resolve_runtime
from resnet_builder.training.saving import CheckpointManager
from resnet_builder.training.schedule import make_schedule
from resnet_builder.training.state import State
from resnet_builder.training.step import make_train_step
from resnet_builder.training.unused import unused_parameters


def fit(
    model: nn.Module,
    splits: DataSplits,
    spec: Spec,
    run: RunDirectory,
    *,
    observer: Observer = SILENT,
    stop: Stop = never,
    allow_inexact: bool = False,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Result:
    """Train a network to the end of its recipe, from the newest checkpoint of the run if any.

    Args:
        model: The network as built with the recipe's seed; it is moved to the device, and holds
            the selected weights afterwards. What the recipe freezes of it stays frozen.
        splits: The images.
        spec: The experiment, resolved.
        run: Where everything is written; the caller holds its lock.
        observer: Told what happens.
        stop: Polled at every step and every batch of an evaluation.
        allow_inexact: Whether to go on where it cannot be to the same bits, because the
            machine is another.
        ctx: The processes that train, each of which calls this. Its leader alone uses ``run``,
            and the others take its weights.

    Raises:
        CheckpointError: There are checkpoints, but none that can be used.
        DataError: There are fewer training images than a batch has, or others than the run
            began with.
        NonFiniteError: A loss, a gradient or a weight is not finite.
        ProcessLostError: One of several processes is gone.
        ResourceError: There is not memory enough.
        StorageError: What is written at the end cannot be.
        Stopped: ``stop`` became true; resuming goes on from there.
        UsageError: The recipe does not fit the data, or the run cannot go on to the same bits.
    """
    train = _recipe(spec, splits, run, ctx)
    observer = Logged(run.log, observer) if ctx.is_main_process else SILENT
    device = resolve_device(spec.run.device, ctx)
    batches = _training_batches(spec, splits, device, ctx)
    plan = make_plan(train, batches.steps_per_epoch, ctx.world_size)
    schedule = make_schedule(train, batches.steps_per_epoch)
    choices = resolve_runtime(
        spec.run,
        run,
        ctx,
        accumulate=train.accumulate,
        allow_inexact=allow_inexact,
        warn=observer.warned,
    )
    model.to(device).to(memory_format=MEMORY_FORMATS[choices.memory_format])
    _sync_norms(model, train, device, ctx)
    resize = make_resizing(train, plan.total_steps)
    has_unused = ctx.world_size > 1 and bool(unused_parameters(model, spec.model.image_shape))
    train_step = make_train_step(
        model, train, schedule, choices, resize=resize, ctx=ctx, has_unused=has_unused
    )
    state = State(
        model,
        train_step.optimizer,
        _average(model, train),
        fingerprint=splits.fingerprint,
        validation_indices=splits.validation_indices,
    )
    saver = CheckpointManager(run, state, plan, train.keep_checkpoints, observer, ctx)
    delivery = Delivery(run, spec, splits, state, plan, choices, ctx)
    loop = Loop(
        state,
        plan,
        schedule,
        train_step,
        batches,
        validate=None if splits.validation is None else partial(delivery.validate, stop),
        early_stop=train.early_stop,
        saver=saver,
        deliver_best=delivery.publish_best,
        rows=MetricsLog(run),
        observer=observer,
        stop=stop,
        ctx=ctx,
    )
    saver.resume()
    observer.started(_start(state, plan, device, choices))
    with private_generators(device), memory_named(spec, choices):
        loop.run()
        return delivery.finish(observer, stop)


def _recipe(
    spec: Spec, splits: DataSplits, run: RunDirectory, ctx: DistributedContext
) -> TrainSpec:
    """Return the recipe of a run that there is something left to do of.

    Raises:
        UsageError: There is nothing to do, or nothing to do it with.
    """
    given = (dump_spec(spec), splits.fingerprint, splits.validation_indices)
    if ctx.broadcast_object(given) != given:
        raise UsageError(
            f"process {ctx.rank} was given another spec, or other images, than process 0"
        )
    if run.is_finished:
        raise UsageError(f"{run.path} is already complete")
    if spec.train is None or spec.data is None:
        raise UsageError(f"{spec.name}: a spec to train needs `data` and `train`")
    if spec.train.early_stop is not None and splits.validation is None:
        raise UsageError("train.early_stop: it needs validation images; set data.validation")
    check_batch_size(spec.train.batch_size, spec.train.accumulate, ctx)
    return spec.train


def _sync_norms(
    model: nn.Module, train: TrainSpec, device: torch.device, ctx: DistributedContext
) -> None:
    """Replace batch norms by SyncBatchNorm, if the recipe asks for it.

    Raises:
        UsageError: The device is not CUDA, the only one that SyncBatchNorm supports.
    """
    if not train.sync_norm or ctx.world_size == 1:
        return
    if device.type != "cuda":
        raise UsageError(
            f"train.sync_norm: synchronised batch norm needs CUDA, and this run trains on "
            f"'{device.type}'; set it to false"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _average(model: nn.Module, train: TrainSpec) -> Ema | None:
    if train.ema is None:
        return None
    return Ema(model, train.ema, frozen=frozen_tensors(model, train.freeze))


def _training_batches(
    spec: Spec, splits: DataSplits, device: torch.device, ctx: DistributedContext
) -> TrainBatches:
    assert spec.data is not None, "a spec to train has data"
    assert spec.train is not None, "a spec to train has a recipe"
    augmentations = [AUGMENTATIONS.get(part.type)(**part.options) for part in spec.data.augment]
    pipeline = Pipeline(
        augmentations, splits.mean, splits.std, len(splits.classes), spec.train.seed
    )
    return TrainBatches(
        _held(splits.train, device),
        batch_size=spec.train.batch_size,
        seed=spec.train.seed,
        pipeline=pipeline,
        device=device,
        share=ctx.shard,
    )


def _held(source: ImageSource, device: torch.device) -> ImageSource:
    """Bring images to a device that can hold them all, so that no batch has to be sent."""
    if isinstance(source, InMemoryImages) and fits(source.images.nbytes, device):
        return source.on(device)
    return source


def _start(state: State, plan: Plan, device: torch.device, choices: RuntimeConfig) -> Start:
    return Start(
        step=state.counters.step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        device=describe(device),
        choices=choices,
    )
