"""Training: what a run leaves behind, what it selects by, and what it does when something fails."""

import errno
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.data.sources import InMemoryImages
from resnet_builder.errors import (
    DataError,
    NonFiniteError,
    ResourceError,
    Stopped,
    StorageError,
    UsageError,
)
from resnet_builder.runs import files
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, ResultRecord
from resnet_builder.training import checkpoint, trainer
from resnet_builder.training.checkpoint import load_newest, save_checkpoint
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.metrics import Metrics
from resnet_builder.weights.file import read_tensors, read_weights
from tests.cli.experiments import call, write_tiny
from tests.training.recipes import small_net, weight
from tests.training.runs import Recorder, after, experiment, outcome, small_splits, train

BATCHES = 3
"""Of 11 validation images, 8 at a time, there are two; ``stop`` is asked at each, and then once."""


def scripted(
    monkeypatch: pytest.MonkeyPatch, top1: list[float], loss: list[float] | None = None
) -> None:
    """Let evaluations come out as told."""
    answers = iter(zip(top1, loss or [1.0] * len(top1), strict=True))

    def answer(*_: Any, precision: Any, **__: Any) -> Metrics:
        value, lost = next(answers)
        nothing = torch.zeros(1, dtype=torch.int64)
        return Metrics(lost, value, None, nothing, nothing, num_classes=4, precision=precision)

    monkeypatch.setattr(trainer, "evaluate_images", answer)


def validate(weights: dict[str, Tensor]) -> Metrics:
    """Evaluate a state dict on the validation images, without any of ``fit``."""
    splits = small_splits()
    model = small_net()
    model.load_state_dict(weights)
    assert splits.validation is not None
    pixels = next(splits.validation.read([torch.arange(11)])).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (splits.mean, splits.std))
    return evaluate(model, [((pixels - mean) / std, splits.validation.labels)])


def losing(step: int, exception: BaseException | None = None) -> nn.Module:
    """Make a network whose forward pass is spoilt at one training step, by NaN or an exception."""
    model = small_net()
    seen = iter(range(10_000))

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not model.training or next(seen) != step:
            return None
        if exception is not None:
            raise exception
        return output * math.nan

    model[-1].register_forward_hook(spoil)
    return model


def failing_saves(monkeypatch: pytest.MonkeyPatch, code: int, *, times: int) -> None:
    """Let the disk fail while checkpoints are written, so many times."""
    left = iter(range(times))

    def save(*args: Any, **kwargs: Any) -> None:
        def fail(name: str) -> None:
            if name == "written":
                raise OSError(code, "no")

        with monkeypatch.context() as patch:
            if next(left, None) is not None:
                patch.setattr(files, "failpoint_hook", fail)
            save_checkpoint(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)


def test_run_leaves_its_result(tmp_path: Path) -> None:
    recorder = Recorder()
    published = {"test_top1": 0.9, "source": "A paper, table 1"}
    result = train(tmp_path / "run", experiment(published=published), callbacks=[recorder])
    run, record, test = RunDirectory(tmp_path / "run"), result.record, result.test

    assert ResultRecord.read(run.result) == record
    assert run.is_finished
    assert recorder.results == [result]
    assert test is not None
    assert test.num_images == 13
    assert (record.steps, record.seed, record.precision) == (12, 0, "fp32")
    assert (record.selected_on, record.test_top1) == ("val", test.top1)
    assert record.parameters == sum(p.numel() for p in small_net().parameters())
    assert record.macs == 6 * 6 * 8 * 27 + 3 * 3 * 8 * 72 + 72 * 4
    assert record.images_per_second == pytest.approx(96 / record.seconds)
    assert recorder.evaluations[-1] == (record.selected_step, "test", False)
    assert record.published is not None
    assert record.published.source == "A paper, table 1"
    assert record.published.test_top1_difference == test.top1 - 0.9
    assert record.published.test_top5_difference is None


def test_best_weights_are_those_that_validation_saw(tmp_path: Path) -> None:
    model = small_net()
    result = train(tmp_path / "run", experiment(evaluate_every={"steps": 2}), model=model)
    run = RunDirectory(tmp_path / "run")
    weights, header = read_weights(run.best)
    assert header.step == result.record.selected_step
    assert validate(weights).top1 == header.metrics["val.top1"] == result.record.val_top1
    assert header.metrics["test.top1"] == result.record.test_top1
    rows = [row for row in MetricsLog(run).read() if row.event == "validation"]
    assert [row.step for row in rows] == [2, 4, 6, 8, 10, 12]
    assert max(row.val_top1 or 0 for row in rows) == result.record.val_top1
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(("ema", "group"), [(None, "model"), ({"decay": 0.9}, "ema")])
def test_last_weights_are_those_after_the_last_step_averaged_if_there_is_an_average(
    ema: Any, group: str, tmp_path: Path
) -> None:
    train(tmp_path / "run", experiment(ema=ema))
    run = RunDirectory(tmp_path / "run")
    weights, header = read_weights(run.last)
    saved = load_newest(run)
    assert saved is not None
    assert header.step == 12
    assert all(torch.equal(t, saved.tensors[f"{group}/{n}"]) for n, t in weights.items())
    is_model = torch.equal(weights["0.weight"], saved.tensors["model/0.weight"])
    assert is_model is (ema is None)
    assert validate(weights).loss == pytest.approx(header.metrics["val.loss"], rel=1e-5)


def test_best_is_the_highest_on_validation_and_the_earlier_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kuangliu and akamaster keep what is best on the test images, which here are read once."""
    recorder = Recorder()
    scripted(monkeypatch, [0.25, 0.5, 0.5, 0.25, 0.1])
    spec = experiment(steps=4, evaluate_every={"steps": 1})
    record = train(tmp_path / "run", spec, callbacks=[recorder]).record
    assert recorder.evaluations == [
        *((1, "val", True), (2, "val", True), (3, "val", False), (4, "val", False)),
        (2, "test", False),
    ]
    assert (record.selected_on, record.selected_step) == ("val", 2)
    assert (record.val_top1, record.test_top1) == (0.5, 0.1)


def test_recorded_metrics_are_computed_in_fp32_where_training_is_in_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what ``evaluate`` finds; the metrics along the way say that they are bf16's."""
    recorder = Recorder()
    scripted(monkeypatch, [0.25, 0.5, 0.375, 0.3, 0.2])
    spec = experiment(steps=3, evaluate_every={"steps": 1}, run={"precision": "bf16"})
    record = train(tmp_path / "run", spec, callbacks=[recorder]).record
    run = RunDirectory(tmp_path / "run")
    assert recorder.evaluations[-2:] == [(2, "val", False), (2, "test", False)]
    rows = [row for row in MetricsLog(run).read() if row.event != "train"]
    assert [(row.step, row.precision, row.val_top1, row.test_top1) for row in rows] == [
        (1, "bf16", 0.25, None),
        (2, "bf16", 0.5, None),
        (3, "bf16", 0.375, None),
        (2, "fp32", 0.3, None),
        (2, "fp32", None, 0.2),
    ]
    assert (record.selected_step, record.val_top1, record.test_top1) == (2, 0.3, 0.2)
    header = read_weights(run.best)[1]
    assert (header.metrics["val.top1"], header.metrics["test.top1"]) == (0.3, 0.2)
    assert read_weights(run.last)[1].metrics == {}


def test_evaluate_prints_the_recorded_validation_of_a_run_in_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_tiny(tmp_path)
    trained = call("train", spec, "--out", "run", "--json", "--set", "run.precision=bf16")
    assert trained.exit_code == 0, trained.stderr
    assert " in bf16" in trained.stderr
    evaluated = call("evaluate", "run", "--split", "val", "--json")
    recorded = json.loads(trained.stdout)["val.top1"]
    assert json.loads(evaluated.stdout)["metrics"]["val.top1"] == recorded


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=["nan", "inf"])
def test_loss_that_is_not_finite_is_never_best(
    loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    scripted(monkeypatch, [0.9, 0.25, 0.9, 0.1], loss=[loss, 1.0, loss, 1.0])
    spec = experiment(steps=3, evaluate_every={"steps": 1})
    result = train(tmp_path / "run", spec, callbacks=[recorder])
    assert result.record.selected_step == 2
    assert recorder.warnings == [
        "the validation loss after step 1 is not finite",
        "the validation loss after step 3 is not finite",
    ]
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    assert [row.val_loss for row in rows if row.event == "validation"] == [None, 1.0, None]


def test_without_validation_the_last_weights_are_selected(tmp_path: Path) -> None:
    record = train(tmp_path / "run", experiment(), splits=small_splits(validation=False)).record
    run = RunDirectory(tmp_path / "run")
    best, last = (read_weights(path)[0] for path in (run.best, run.last))
    assert (record.selected_on, record.selected_step, record.val_top1) == ("none", 12, None)
    assert all(torch.equal(best[name], tensor) for name, tensor in last.items())
    assert {row.event for row in MetricsLog(run).read()} == {"train", "test"}


def test_without_test_images_nothing_is_tested(tmp_path: Path) -> None:
    result = train(tmp_path / "run", experiment(), splits=small_splits(test=False))
    assert (result.test, result.record.test_top1, result.early_end) == (None, None, None)
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    assert {row.event for row in rows} == {"train", "validation"}


def test_training_stops_early_when_validation_does_not_rise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.5, 0.5, 0.6, 0.6, 0.6, 0.1])
    spec = experiment(steps=12, evaluate_every={"steps": 1}, early_stop={"patience": 2})
    recorder = Recorder()
    result = train(tmp_path / "run", spec, callbacks=[recorder])
    assert result.record.steps == 5
    assert recorder.progress[-1].step == 5
    reason = "stopped early after step 5 of 12: validation top-1 did not rise any more"
    assert result.early_end == reason
    assert reason in RunDirectory(tmp_path / "run").log.read_text()


def test_it_memorises_64_images(tmp_path: Path) -> None:
    splits = small_splits(validation=False, train=64)
    spec = experiment(
        steps=160, batch_size=32, optimizer={"type": "adamw", "lr": 0.02}, schedule="cosine"
    )
    train(tmp_path / "run", spec, splits=splits)
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    assert rows[-2].event == "train"
    assert rows[-2].train_top1 == 1.0


def test_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.rand(3)  # the caller's own generator must not matter
        before = torch.get_rng_state()
        train(tmp_path / name, experiment(seed=seed), extra=[nn.Dropout(0.5)])
        assert torch.equal(torch.get_rng_state(), before)
        found.append(outcome(tmp_path / name))
    assert found[0] == found[1]
    assert found[0]["last"] != found[2]["last"]


@pytest.mark.parametrize(
    ("every", "expected"),
    [({"steps": 5}, [5, 10, 12]), ({"epochs": 1}, [4, 8, 12]), ({"seconds": 3600.0}, [12])],
)
def test_checkpoints_are_saved_at_intervals_and_at_the_end(
    every: Any, expected: list[int], tmp_path: Path
) -> None:
    recorder = Recorder()
    train(
        tmp_path / "run",
        experiment(checkpoint_every=every, keep_checkpoints=3),
        callbacks=[recorder],
    )
    assert recorder.saves == expected
    names = sorted(path.name for path in RunDirectory(tmp_path / "run").checkpoints.iterdir())
    assert names == [f"step-{step:09d}.safetensors" for step in expected]


def test_clock_decides_when_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(checkpoint, "monotonic", lambda: float(next(ticks)))
    recorder = Recorder()
    train(tmp_path / "run", experiment(checkpoint_every={"seconds": 5.0}), callbacks=[recorder])
    assert len(recorder.saves) > 2
    assert {later - sooner for sooner, later in pairwise(recorder.saves[:-1])} == {5}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_training_goes_on_when_it_cannot_be_saved(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    failing_saves(monkeypatch, code, times=2)
    train(tmp_path / "run", experiment(checkpoint_every={"steps": 3}), callbacks=[recorder])
    assert recorder.saves == [9, 12]
    for step, text in zip((3, 6), recorder.warnings, strict=True):
        assert text.startswith(f"not saved at step {step},")
        assert text.endswith("no checkpoint was saved yet")


def test_stop_saves_at_a_step_and_says_which(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(Stopped, match=r"^stopped after step 3, which is saved$"):
        train(tmp_path / "run", experiment(), should_stop=after(3), callbacks=[recorder])
    assert (recorder.saves, recorder.results) == ([3], [])


def test_stop_that_cannot_be_saved_is_still_a_stop_but_the_last_save_must_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    failing_saves(monkeypatch, errno.ENOSPC, times=2)
    with pytest.raises(Stopped, match=r"^stopped after step 3$"):
        train(tmp_path / "run", experiment(), should_stop=after(3), callbacks=[recorder])
    assert "not saved at step 3" in recorder.warnings[0]
    with pytest.raises(StorageError, match=r"step-000000012\.safetensors"):
        train(tmp_path / "run", experiment())
    assert not RunDirectory(tmp_path / "run").is_finished


class Unreadable(InMemoryImages):
    """Images of which the sixth batch cannot be read at first."""

    error: Exception
    epoch = 0

    def read(self, batches: Any, crop: Any = None) -> Iterator[Tensor]:
        for number, batch in enumerate(super().read(batches, crop)):
            if number == 1 and self.epoch == 1:
                raise self.error
            yield batch
        self.epoch += 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("5.png: broken"), r"^5\.png: broken$"),
        (ResourceError("a worker was killed"), "^a worker was killed$"),
        (Stopped("while waiting"), "^stopped after step 5, which is saved$"),
    ],
    ids=["broken", "killed", "stopped"],
)
def test_step_before_images_that_cannot_be_read_is_saved(
    error: Exception, message: str, tmp_path: Path
) -> None:
    splits = small_splits()
    assert isinstance(splits.train, InMemoryImages)
    images = Unreadable(splits.train.images, splits.train.labels)
    images.error = error
    recorder = Recorder()
    with pytest.raises(type(error), match=message):
        train(
            tmp_path / "run",
            experiment(),
            splits=replace(splits, train=images),
            callbacks=[recorder],
        )
    assert recorder.saves == [5]
    train(tmp_path / "run", experiment())
    train(tmp_path / "expected", experiment())
    assert outcome(tmp_path / "run") == outcome(tmp_path / "expected")


def test_run_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """kuangliu's repeats the epoch, adds 200 more and begins its cosine again."""
    spec = experiment(schedule="cosine")
    with pytest.raises(Stopped):
        train(tmp_path / "run", spec, should_stop=after(6 + BATCHES - 1))
    recorder = Recorder()
    result = train(tmp_path / "run", spec, callbacks=[recorder])
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    assert recorder.starts[0].step == 6
    assert result.record.steps == 12
    assert [row.step for row in rows if row.event == "train"] == [4, 8, 12]
    rates = [0.025 * (1 + math.cos(math.pi * step / 11)) for step in (3, 7, 11)]
    assert [row.lr for row in rows if row.event == "train"] == pytest.approx(rates)


def test_killed_run_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    spec = experiment(checkpoint_every={"steps": 2}, evaluate_every={"steps": 3})
    train(tmp_path / "expected", spec)
    for step in (1, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", spec, model=losing(step, exception=KeyboardInterrupt()))
    train(tmp_path / "run", spec)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "expected")


@pytest.mark.parametrize("step", [0, 5], ids=["first", "later"])
def test_loss_that_is_not_a_number_ends_the_run(step: int, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = experiment(checkpoint_every={"steps": 2}, evaluate_every={"steps": 100})
    run = RunDirectory(tmp_path / "run")
    newest, advice = "no checkpoint was saved yet", "the rate is not the cause: check"
    if step:
        newest = f"the newest checkpoint is {run.checkpoints / 'step-000000004.safetensors'}"
        advice = "lower the rate"
    message = rf"step {step + 1} is not finite \(learning rate 0\.05\); {newest}; {advice}"
    with pytest.raises(NonFiniteError, match=message):
        train(run.path, spec, model=losing(step), callbacks=[recorder])
    assert recorder.saves == [2, 4][: step // 2]
    assert not run.best.exists()
    assert not run.last.exists()


@pytest.mark.parametrize("cause", ["rate", "gradient"])
def test_run_that_diverges_saves_nothing_bad(cause: str, tmp_path: Path) -> None:
    model = small_net(norm=False)
    model[4] = nn.ReLU()  # which, unlike tanh, lets large numbers grow
    lr = 1e20 if cause == "rate" else 0.05
    if cause == "gradient":
        weight(model, 0).register_hook(lambda gradient: gradient * math.inf)
    every_step = {"checkpoint_every": {"steps": 1}, "evaluate_every": {"steps": 1}}
    spec = experiment(optimizer={"type": "sgd", "lr": lr}, **every_step)
    with pytest.raises(NonFiniteError, match=re.escape(f"(learning rate {lr:g})")):
        train(tmp_path / "run", spec, model=model)
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in read_tensors(path)[0].values())


def test_statistics_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Training never looks at them, so no loss shows them."""
    model = small_net()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean.fill_(math.nan)
    recorder = Recorder()
    with pytest.raises(NonFiniteError, match=r"model/1\.running_mean"):
        train(tmp_path / "run", experiment(), model=model, callbacks=[recorder])
    assert recorder.saves == []
    assert [best for _, _, best in recorder.evaluations] == [False, False, False]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_network_that_computes_nothing_finite_in_evaluation_mode_is_no_result(
    split: str, precision: str, tmp_path: Path
) -> None:
    """Its weights and its training loss are finite."""
    model = small_net()
    model[-1].register_forward_hook(
        lambda module, inputs, output: output if model.training else output * math.nan
    )
    splits = small_splits(validation=split == "val", test=split == "test")
    spec = experiment(run={"precision": precision})
    with pytest.raises(NonFiniteError, match=f"not finite for any {split} image"):
        train(tmp_path / "run", spec, model=model, splits=splits)
    assert not RunDirectory(tmp_path / "run").is_finished


def test_moving_average_that_hardly_moves_is_a_warning(tmp_path: Path) -> None:
    recorder = Recorder()
    train(tmp_path / "run", experiment(ema={"decay": 0.99}), callbacks=[recorder])
    assert recorder.warnings == [
        "train.ema: 89 % of the average will still be the initial weights at the end of this "
        "training; lower the decay"
    ]


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate"),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=["python", "cuda", "cpu", "mps"],
)
def test_memory_that_runs_out_is_explained(raised: Exception, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        train(tmp_path / "run", experiment(accumulate=2), model=losing(0, exception=raised))
    message = str(caught.value)
    assert message.startswith("out of memory in training: it is estimated to take ")
    assert "for 4 images at a time" in message
    assert message.endswith("train.batch_size=4, or, with the same batches, train.accumulate=4")


@pytest.mark.parametrize("phase", ["step", "validation", "test"])
def test_memory_that_runs_out_in_any_phase_is_named(phase: str, tmp_path: Path) -> None:
    """Nothing is made smaller unasked: the batch is a part of what is trained."""
    model = small_net()
    sizes: set[int] = set()

    def spoil(module: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.add(len(inputs[0]))
        if module.training is (phase == "step"):
            torch.empty(2**50)

    model.register_forward_pre_hook(spoil)
    splits = small_splits(validation=phase == "validation")
    with pytest.raises(ResourceError, match=r"^out of memory .* 8 images at a time"):
        train(tmp_path / "run", experiment(), model=model, splits=splits)
    assert sizes == {8}
    assert not (tmp_path / "run" / "result.json").exists()


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(tmp_path / "run", experiment())
    before = outcome(tmp_path / "run")
    with pytest.raises(UsageError, match="already complete"):
        train(tmp_path / "run", experiment())
    assert outcome(tmp_path / "run") == before
