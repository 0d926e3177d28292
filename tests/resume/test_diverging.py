"""Numbers that are not finite end a run with 5, before a weight changes or anything is saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.losses import CrossEntropy
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.step import TrainStep
from resnet_builder.weights.file import read_tensors
from tests.cli.experiments import call
from tests.crash.experiments import assert_same_outcome, train_line, write_experiment
from tests.resume.conftest import Interrupted

BAD_STEP = 11  # counted from 0: two steps after the checkpoint, and one before the next


def infinite_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 10  # where the run was stopped
    forward = CrossEntropy.forward

    def infinite(loss: CrossEntropy, logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal count
        count += logits.requires_grad  # not where a spec is checked
        found = forward(loss, logits, targets)
        return found * math.inf if count == BAD_STEP + 1 else found

    monkeypatch.setattr(CrossEntropy, "forward", infinite)


def infinite_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, lambda model: model.fc.weight.register_hook(lambda g: g * math.inf))


def statistics_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, lambda model: model.bn1.running_mean.fill_(math.nan))


def before_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], object]) -> None:
    """Do something to the network before the step that is to be bad."""
    real_init, real_call = TrainStep.__init__, TrainStep.__call__

    def remember(train_step: Any, model: nn.Module, *arguments: Any, **options: Any) -> None:
        train_step.network = model
        real_init(train_step, model, *arguments, **options)

    def call_after(train_step: Any, batch: Any, *, step: int, lr: float) -> Tensor:
        if step == BAD_STEP:
            act(train_step.network)
        return real_call(train_step, batch, step=step, lr=lr)

    monkeypatch.setattr(TrainStep, "__init__", remember)
    monkeypatch.setattr(TrainStep, "__call__", call_after)


@pytest.mark.parametrize(
    ("inject", "message"),
    [
        (infinite_loss, "the loss or the gradient of step 12 is not finite (learning rate 0.1)"),
        (infinite_gradient, "the loss or the gradient of step 12 is not finite"),
        (statistics_that_are_no_numbers, "'model/bn1.running_mean' holds a value that is not fin"),
    ],
    ids=["loss", "gradient", "statistics"],
)
def test_run_that_goes_wrong_can_be_gone_on_with_once_the_cause_is_gone(
    inject: Callable[[pytest.MonkeyPatch], None],
    message: str,
    interrupted: Interrupted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that the bad step did is left: the run ends in the bits of one without it."""
    with monkeypatch.context() as patch:
        inject(patch)
        result = interrupted.resume()
    assert result.exit_code == 5
    assert message in result.stderr
    assert f"the newest checkpoint is {interrupted.newest}" in result.stderr
    assert_all_finite(interrupted.run)
    assert not interrupted.run.last.exists()
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    assert_same_outcome(interrupted.run.path, interrupted.expected)


def test_rate_of_1e20_is_5(tmp_path: Path) -> None:
    spec = write_experiment(tmp_path, "early", checkpoint_every={"steps": 1})
    run = RunDirectory(tmp_path / "run")
    result = call(*train_line(spec, run.path, "--set", "train.optimizer.lr=1e20"))
    assert result.exit_code == 5
    assert "(learning rate 1e+20)" in result.stderr
    assert_all_finite(run)


def assert_all_finite(run: RunDirectory) -> None:
    """Check every tensor that a run has saved."""
    for path in run.path.rglob("*.safetensors"):
        for name, tensor in read_tensors(path)[0].items():
            assert torch.isfinite(tensor).all(), f"{path}: {name}"
