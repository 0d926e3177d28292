"""A training's state in a checkpoint and back, also where the recipe changed in between."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder.errors import CheckpointError, DataError, Stopped, UsageError
from resnet_builder.runs.checkpoint import Checkpoint, load_newest
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.state import State
from tests.training.recipes import recipe, small_net, weight
from tests.training.runs import after, experiment, small_splits, train


def state_of(model: nn.Module) -> State:
    optimizer = build_optimizer(model, recipe().optimizer, no_weight_decay=(), fused=True)
    return State(model, optimizer, None, fingerprint="small")


def evaluation(top1: float, loss: float = 1.0) -> Evaluation:
    nothing = torch.zeros(1, dtype=torch.int64)
    return Evaluation(loss, top1, 1.0, nothing, nothing, num_classes=4)


def stopped(path: Path, **recipe: Any) -> Checkpoint:
    """Train half a run; return its checkpoint."""
    with pytest.raises(Stopped):
        train(path, experiment(**recipe), stop=after(7))
    checkpoint = load_newest(RunDirectory(path))
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_holds_everything_by_name(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path / "run", ema={"decay": 0.9})
    model = small_net()
    names, parameters = model.state_dict().keys(), dict(model.named_parameters()).keys()
    assert checkpoint.tensors.keys() == {
        *(f"{part}/{name}" for part in ("model", "ema", "best") for name in names),
        *(f"optim/{name}/momentum_buffer" for name in parameters),
    }
    assert checkpoint.state["counters"]["step"] == checkpoint.step == 5


def test_a_checkpoint_of_another_network_is_refused() -> None:
    """row69: the first tensor that differs, and both shapes."""
    checkpoint = state_of(small_net()).checkpoint(0)
    other = small_net()
    other[6] = nn.Linear(72, 7)
    with pytest.raises(UsageError) as caught:
        state_of(other).restore(checkpoint)
    assert str(caught.value) == (
        "the checkpoint is of another network: '6.bias' has shape [4] there, shape [7] here"
    )


def test_a_checkpoint_with_other_names_is_refused() -> None:
    checkpoint = state_of(small_net()).checkpoint(0)
    with pytest.raises(UsageError, match=r"'1\.bias' has shape \[8\] there, no tensor here"):
        state_of(small_net(norm=False)).restore(checkpoint)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param({"counters": None}, "counters: ", id="row68-no-counters"),
        pytest.param({"counters": {"step": "many"}}, "counters.step: ", id="row68-text"),
        pytest.param({"counters": {"step": 9}}, "its counters are of step 9", id="row68-step"),
        pytest.param({"data": {"fingerprint": "small"}}, "data.validation: ", id="row68-no-data"),
        pytest.param({"metrics_bytes": -1}, "metrics_bytes: ", id="row68-negative"),
        pytest.param({"optimizer": []}, "optimizer: ", id="row68-list"),
    ],
)
def test_a_checkpoint_that_says_what_training_never_writes_is_damaged(
    state: dict[str, Any], reason: str
) -> None:
    checkpoint = state_of(small_net()).checkpoint(0)
    with pytest.raises(CheckpointError) as caught:
        state_of(small_net()).restore(replace(checkpoint, state={**checkpoint.state, **state}))
    assert str(caught.value).startswith(f"the checkpoint of step 0 is damaged: {reason}")


@pytest.mark.parametrize(
    "name", ["optim/nobody/momentum_buffer", "optim/0.weight/momentum_buffer", "optim/0.weight"]
)
def test_row68_state_of_an_optimizer_that_fits_no_parameter_is_refused(name: str) -> None:
    checkpoint = state_of(small_net()).checkpoint(0)
    tensors = {**checkpoint.tensors, name: torch.ones(2)}
    with pytest.raises(CheckpointError, match=f"'{name[6:]}' is of no parameter of the network"):
        state_of(small_net()).restore(replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "the data set is not the run's: small when it began, other now"),
        (
            {"validation_indices": (3, 4)},
            r"the validation images are not the run's: 0 images from \[\] when it began, "
            r"2 images from \[3, 4\] now",
        ),
    ],
    ids=["row50-fingerprint", "row50-validation"],
)
def test_a_run_does_not_go_on_with_other_images(change: Any, message: str, tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        train(tmp_path / "run", experiment(), splits=replace(small_splits(), **change))


def test_a_new_average_starts_from_the_weights(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    result = train(tmp_path / "run", experiment(ema={"decay": 0.5}))
    assert result.record.steps == 12


def test_a_new_optimizer_starts_from_nothing(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    spec = experiment(optimizer={"type": "adamw", "lr": 0.01})
    train(tmp_path / "run", spec)
    checkpoint = load_newest(RunDirectory(tmp_path / "run"))
    assert checkpoint is not None
    assert checkpoint.tensors["optim/0.weight/step"].item() == 12 - 5


def test_best_weights_are_kept_as_they_were() -> None:
    model = small_net()
    state = state_of(model)
    state.counters.step = 1
    assert state.note(evaluation(0.5), 0.0)
    before = weight(model, 0).detach().clone()
    with torch.no_grad():
        weight(model, 0).zero_()
    state.counters.step = 2
    assert not state.note(evaluation(0.5), 0.0)
    assert state.counters.best_step == 1
    assert torch.equal(state.best_weights["0.weight"], before)


def test_restoring_keeps_memory_formats() -> None:
    model = small_net()
    checkpoint = state_of(small_net(seed=1)).checkpoint(5)
    model.to(memory_format=torch.channels_last)
    strides = [parameter.stride() for parameter in model.parameters()]
    assert state_of(model).restore(checkpoint) == 5
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert torch.equal(weight(model, 0), checkpoint.tensors["model/0.weight"])
