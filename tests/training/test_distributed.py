"""Distributed training: two processes train what one does, and end together."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from resnet_builder.builder import load_experiment
from resnet_builder.errors import (
    NonFiniteError,
    ProcessLostError,
    Stopped,
    StorageError,
    UsageError,
)
from resnet_builder.experiment import Experiment
from resnet_builder.losses import LOSSES, CrossEntropy
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.predictions import RunPredictions
from resnet_builder.runs.records import EnvRecord, MetricsLog, ResultRecord
from resnet_builder.training import checkpoint
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    from_env,
)
from resnet_builder.training.meter import TrainMeter
from tests.training.recipes import CLASSES, small_net
from tests.training.runs import Recorder, after, experiment, outcome, resume_run, start_run, train
from tests.training.teams import environment, forked, in_team, results

BASE: dict[str, Any] = {
    "name": "shared",
    "model": {
        "num_classes": 4,
        "stem": {"type": "conv3x3", "channels": 4},
        "block": "basic",
        "shortcut": "projection",
        "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
    },
    "data": {
        "dataset": {
            "type": "synthetic",
            "num_classes": 4,
            "image_size": 8,
            "train": 72,
            "test": 13,
        },
        "validation": 11,
    },
    "train": {
        "steps": 50,
        "batch_size": 16,
        "optimizer": {"type": "sgd", "lr": 0.05},
        "evaluate_every": {"steps": 25},
    },
    "run": {"device": "cpu", "precision": "fp32"},
}
MIXED = (
    "model.norm={type: group_norm, groups: 2}",
    "data.augment=[{type: random_crop, padding: 1}, {type: mixup, alpha: 1.0}]",
    "train.accumulate=2",
    "train.clip_norm=0.5",
    "train.ema={decay: 0.9}",
)
CHECKPOINTED = (
    "data.augment=[horizontal_flip, cutmix]",
    "model.norm={type: group_norm, groups: 2}",
    "train.activation_checkpointing=all",
    "train.accumulate=2",
)
WEIGHTED = (
    "model.norm={type: group_norm, groups: 2}",
    "data.sampler=balanced",
    "train.loss={type: focal, class_weights: [1, 2, 4, 8]}",
    "train.accumulate=2",
    "train.steps=8",
    "train.evaluate_every.steps=4",
)


def base(*overrides: str) -> Experiment:
    return load_experiment(BASE, overrides=overrides)


def begin(ctx: DistributedContext, run: Path, *overrides: str) -> ResultRecord:
    """Train; only the main process is given a directory that may be made."""
    return start_run(base(*overrides), run if ctx.is_main_process else run.parent / "no", ctx=ctx)


def begin_recording(ctx: DistributedContext, run: Path, *overrides: str) -> list[float]:
    """Train; return the loss of every step."""
    losses: list[float] = []
    add = TrainMeter.add

    def record(meter: TrainMeter, row: Tensor) -> None:
        losses.append(row[0].item())
        add(meter, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainMeter, "add", record)
        begin(ctx, run, *overrides)
    return losses


def go_on(
    ctx: DistributedContext, run: Path, polls: int, *overrides: str, seen: Recorder | None = None
) -> ResultRecord:
    """Resume, until the last process is asked to stop."""
    stop = after(polls if ctx.rank == ctx.world_size - 1 else 10_000)
    how = {"should_stop": stop, "callbacks": [] if seen is None else [seen]}
    return resume_run(base(*overrides), run, ctx=ctx, fit_options=how)


def go_on_warned(ctx: DistributedContext, run: Path, *overrides: str) -> list[str]:
    """Resume to the end; return the warnings."""
    seen = Recorder()
    go_on(ctx, run, 10_000, *overrides, seen=seen)
    return seen.warnings


def losses(run: Path) -> list[float]:
    """Return the mean losses between evaluations."""
    return [row.train_loss for row in MetricsLog(RunDirectory(run)).read() if row.train_loss]


def assert_equal_runs(run: Path, expected: Path) -> None:
    """Compare losses, checkpoints and predictions, which differ by rounding."""
    assert losses(run) == pytest.approx(losses(expected), rel=1e-4)
    ours, theirs = (checkpoint.load_newest(RunDirectory(path)) for path in (run, expected))
    assert ours is not None
    assert theirs is not None
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(tensor, theirs.tensors[name], rtol=1e-2, atol=1e-4, msg=name)
    one, other = (RunPredictions.read(RunDirectory(path).predictions) for path in (run, expected))
    assert one.labels.tolist() == other.labels.tolist()
    assert np.allclose(one.label_probabilities, other.label_probabilities, rtol=1e-2)


@forked
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(MIXED, id="mixed", marks=pytest.mark.ci),
        pytest.param(WEIGHTED, id="weighted", marks=pytest.mark.slow),
        pytest.param(CHECKPOINTED, id="checkpointed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_what_one_does(overrides: tuple[str, ...], tmp_path: Path) -> None:
    one = begin_recording(SINGLE_PROCESS, tmp_path / "one", *overrides)
    main, other = results(in_team(begin_recording, tmp_path, tmp_path / "two", *overrides))
    assert len(one) == base(*overrides).train.steps
    assert main == other == pytest.approx(one, rel=1e-4)
    assert_equal_runs(tmp_path / "two", tmp_path / "one")
    assert EnvRecord.read(tmp_path / "two" / "env.json").runtime.world_size == 2
    assert not (tmp_path / "no").exists()


def synced() -> Experiment:
    """Return an experiment with synchronised norms on the CPU, which no spec may ask for."""
    given = base("train.sync_norm=true", "run.device=auto", "train.ema={decay: 0.9}")
    cpu = given.run.model_copy(update={"device": "cpu"})
    return replace(given, spec=given.spec.model_copy(update={"run": cpu}))


def sync_on_cpu(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """Stand in for ``SyncBatchNorm.forward``, which torch has for CUDA alone."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x)
    pixels = 2 * x.numel() / x.shape[1]
    mean = all_reduce(x.sum((0, 2, 3), keepdim=True)) / pixels
    var = all_reduce((x - mean).square().sum((0, 2, 3), keepdim=True)) / pixels
    with torch.no_grad():
        for buffer, new in (
            (norm.running_mean, mean),
            (norm.running_var, var * pixels / (pixels - 1)),
        ):
            assert buffer is not None
            buffer.lerp_(new.flatten(), norm.momentum or 0.0)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
    shape = (1, -1, 1, 1)
    return (x - mean) * (var + norm.eps).rsqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def begin_synced(ctx: DistributedContext, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.SyncBatchNorm, "forward", sync_on_cpu)
        # DDP refuses SyncBatchNorm on the CPU, too.
        patch.setattr(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)
        start_run(synced(), run if ctx.is_main_process else None, ctx=ctx)


@pytest.mark.slow
@forked
def test_synchronised_batch_norms_see_the_whole_batch(tmp_path: Path) -> None:
    begin_synced(SINGLE_PROCESS, tmp_path / "one")
    results(in_team(begin_synced, tmp_path, tmp_path / "two"))
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@forked
def test_batch_norms_are_each_processs_own(tmp_path: Path) -> None:
    begin(SINGLE_PROCESS, tmp_path / "one", "train.steps=2")
    results(in_team(begin, tmp_path, tmp_path / "two", "train.steps=2"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two[0] != pytest.approx(one[0], rel=1e-4)


@pytest.mark.ci
@forked
def test_run_resumed_with_as_many_processes_comes_to_the_same_bits(tmp_path: Path) -> None:
    how = (*MIXED, "train.steps=12", "train.evaluate_every.steps=5")
    results(in_team(begin, tmp_path, tmp_path / "whole", *how))
    run = tmp_path / "parts"
    stopped = in_team(go_on, tmp_path, run, 7, *how)
    assert [type(one) for one in stopped] == [Stopped, Stopped]
    assert str(stopped[0]) == str(stopped[1])
    assert results(in_team(go_on_warned, tmp_path, run, *how)) == [[], []]
    assert outcome(run) == outcome(tmp_path / "whole")


@forked
@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_run_goes_on_with_another_number_of_processes_and_says_so(
    first: int, tmp_path: Path
) -> None:
    how = (*MIXED, "train.steps=20")
    run = tmp_path / "run"
    if first == 1:
        with pytest.raises(Stopped):
            resume_run(base(*how), run, should_stop=after(15))
        [warned, _] = results(in_team(go_on_warned, tmp_path, run, *how))
    else:
        in_team(go_on, tmp_path, run, 10, *how)
        warned = go_on_warned(SINGLE_PROCESS, run, *how)
    change = f"runtime.world_size was {first} and is {3 - first}"
    assert warned == [f"the run resumes, but not to the same bits: {change}"]
    begin(SINGLE_PROCESS, tmp_path / "one", *how)
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert EnvRecord.read(run / "env.json").runtime.world_size == 3 - first


@pytest.mark.slow
@forked
def test_result_of_a_complete_run_is_returned_to_all(tmp_path: Path) -> None:
    record = begin(SINGLE_PROCESS, tmp_path / "run", "train.steps=2")
    assert in_team(go_on, tmp_path, tmp_path / "run", 1, "train.steps=2") == [record, record]


class Idle(nn.Sequential):
    """Network with a layer that it does not compute."""

    def __init__(self) -> None:
        super().__init__(small_net())
        self.idle = nn.Linear(CLASSES, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)


def train_idle(ctx: DistributedContext, run: Path) -> float | None:
    idle = replace(experiment(steps=3), network=Idle().to("meta"))  # type: ignore[arg-type]
    result = train(run, idle, model=Idle(), ctx=ctx)
    return result.record.test_top1


@pytest.mark.ci
@forked
def test_network_with_unused_parameters_is_trained(tmp_path: Path) -> None:
    accuracy, other = results(in_team(train_idle, tmp_path, tmp_path / "run"))
    assert accuracy == other


def train_to_infinity(ctx: DistributedContext, run: Path) -> None:
    """Train with an infinite loss in step 3 of the second process."""
    calls = count(1)

    class Infinite(CrossEntropy):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            trains = logits.requires_grad  # not where a spec is checked
            is_third = trains and (ctx.rank, next(calls)) == (1, 3)
            return super().forward(logits, targets) * (float("inf") if is_third else 1.0)

    with LOSSES.temporary("cross_entropy", Infinite):
        begin(ctx, run)


@pytest.mark.ci
@forked
def test_loss_that_is_not_finite_in_one_process_ends_all(tmp_path: Path) -> None:
    errors = in_team(train_to_infinity, tmp_path, tmp_path / "run")
    assert [type(error) for error in errors] == [NonFiniteError, NonFiniteError]
    assert str(errors[0]).startswith("the loss or the gradient of step 3 is not finite")
    assert str(errors[0]) == str(errors[1])


@pytest.mark.slow
@forked
def test_all_stop_in_an_evaluation_when_one_is_asked_to(tmp_path: Path) -> None:
    errors = in_team(go_on, tmp_path, tmp_path / "run", 1, "train.evaluate_every.steps=1")
    assert [type(error) for error in errors] == [Stopped, Stopped]
    assert str(errors[0]) == str(errors[1]) == "stopped after step 1, which is saved"
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == "step-000000001.safetensors"


def train_without_a_disk(ctx: DistributedContext, run: Path) -> list[str]:
    def fail(*_: Any, **__: Any) -> None:
        assert ctx.is_main_process
        raise StorageError("the disk is full")

    seen = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", fail)
        spec = base("train.steps=4", "train.checkpoint_every={steps: 2}")
        try:
            start_run(spec, run, ctx=ctx, fit_options={"callbacks": [seen]})
        except StorageError as error:
            return [*seen.warnings, str(error)]
    raise AssertionError("it cannot have been saved")


@pytest.mark.slow
@forked
def test_checkpoint_that_cannot_be_saved_is_borne_by_all_and_told_once(tmp_path: Path) -> None:
    main, other = results(in_team(train_without_a_disk, tmp_path, tmp_path / "run"))
    [warning, end] = main
    assert warning.startswith("not saved at step 2, and not since the beginning")
    assert end == "the disk is full"
    assert other[-1] == "the disk is full"


def train_another(ctx: DistributedContext, run: Path, change: str) -> None:
    overrides = [change] if ctx.rank == 1 else []
    begin(ctx, run, *overrides)


@forked
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("train.seed=1", marks=pytest.mark.ci),
        pytest.param("data.dataset.seed=1", marks=pytest.mark.slow),
    ],
)
def test_processes_with_other_specs_or_images_are_refused(change: str, tmp_path: Path) -> None:
    main, other = in_team(train_another, tmp_path, tmp_path / "run", change)
    assert isinstance(main, ProcessLostError)
    assert isinstance(other, UsageError)
    assert str(other) == "process 1 was given another spec, or other images, than process 0"


def lose_one(ctx: DistributedContext) -> bool:
    if ctx.rank == 1:
        raise UsageError("this one leaves")
    return ctx.any_reduce(True)[0]


@pytest.mark.ci
@forked
def test_process_that_is_gone_is_noticed(tmp_path: Path) -> None:
    main, other = in_team(lose_one, tmp_path)
    assert isinstance(other, UsageError)
    assert isinstance(main, ProcessLostError)
    assert str(main) == ("a process of this training is gone, or has not answered for 30 minutes")


def claim(ctx: DistributedContext) -> bool:
    return ctx.may_report(5)


@pytest.mark.ci
@forked
def test_one_process_reports(tmp_path: Path) -> None:
    assert in_team(claim, tmp_path) == [True, False]


def take_turns(ctx: DistributedContext, folder: Path) -> list[str]:
    with ctx.main_process_first(lambda: False):
        (folder / f"turn-{ctx.rank}").touch()
        return sorted(path.name for path in folder.glob("turn-*"))


@pytest.mark.slow
@forked
def test_first_process_of_a_machine_prepares_the_data_alone(tmp_path: Path) -> None:
    first, *others = results(in_team(take_turns, tmp_path, tmp_path, size=3))
    assert first == ["turn-0"]
    assert all("turn-0" in turns for turns in others)


def test_process_group_is_read_from_torchruns_variables() -> None:
    assert from_env({}) == SINGLE_PROCESS
    assert from_env({"RANK": "0", "WORLD_SIZE": "2"}) == SINGLE_PROCESS
    assert from_env(environment(0, 1, 29_500)) == SINGLE_PROCESS
    assert from_env(environment(1, 2, 29_500)) == DistributedContext(1, 2, 1, 2)
    machines = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert from_env(environment(3, 4, 29_500) | machines) == DistributedContext(3, 4, 1, 2)
    for rank, message in (
        ("two", "must be numbers: RANK=two, WORLD_SIZE=2"),
        ("2", "contradict each other: RANK=2, WORLD_SIZE=2"),
    ):
        with pytest.raises(UsageError, match=message):
            from_env(environment(1, 2, 29_500) | {"RANK": rank})
