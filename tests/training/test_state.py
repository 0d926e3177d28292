"""Training state: the best weights and early stopping."""

import pytest
import torch

from resnet_builder.spec.recipe import EarlyStopSpec
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.state import TrainState
from tests.training.recipes import small_net, weight


def metrics(top1: float, loss: float = 1.0) -> Metrics:
    nothing = torch.zeros(1, dtype=torch.int64)
    return Metrics(loss, top1, None, nothing, nothing, num_classes=4)


def test_best_weights_are_a_copy_of_the_earlier_of_equals() -> None:
    model = small_net()
    state = TrainState(step=1)
    assert state.update_best(metrics(0.5), model)
    before = weight(model, 0).detach().clone()
    with torch.no_grad():
        weight(model, 0).zero_()
    state.step = 2
    assert not state.update_best(metrics(0.5), model)
    assert not state.update_best(metrics(0.9, loss=float("nan")), model)
    assert state.best_step == 1
    assert torch.equal(state.best_weights["0.weight"], before)


@pytest.mark.parametrize(
    ("monitor", "best"), [(None, 1), ("top1", 1), ("loss", 3), ("macro_recall", 2), ("macro_f1", 2)]
)
def test_monitored_metric_selects_the_weights(monitor: str | None, best: int) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    state = TrainState()
    for step, (predictions, loss) in enumerate(
        [([0, 0, 0, 0, 0], 9.0), ([0, 0, 0, 1, 1], 2.0), ([0, 0, 0, 1, 0], 1.0)], start=1
    ):
        state.step = step
        predicted = torch.tensor(predictions)
        top1 = (predicted == labels).double().mean().item()
        found = Metrics(loss, top1, None, predicted, labels, num_classes=2, monitor=monitor)
        state.update_best(found, small_net())
    assert state.best_step == best
    assert state.best[f"val.{state.monitored}"] == pytest.approx(
        {1: 0.8, 2: 0.875 if monitor == "macro_recall" else 16 / 21, 3: 1.0}[best]
    )


def test_another_metric_starts_anew_after_a_resume() -> None:
    labels = torch.tensor([0, 0, 1])
    state = TrainState(step=1)
    for step, monitor in enumerate(["top1", "macro_recall"], start=1):
        state.step = step
        found = Metrics(1.0, 2 / 3, None, labels * 0, labels, num_classes=2, monitor=monitor)
        assert state.update_best(found, small_net())
    assert (state.best_step, state.evaluations_without_improvement) == (2, 0)


@pytest.mark.parametrize(
    ("scores", "stale"),
    [([0.5, 0.5, 0.5], True), ([0.5, 0.505, 0.509], True), ([0.5, 0.5, 0.6], False)],
    ids=["no better", "not better by min_delta", "better in time"],
)
def test_early_stopping_counts_evaluations_without_improvement(
    scores: list[float], stale: bool
) -> None:
    early_stop = EarlyStopSpec(patience=2, min_delta=0.01)
    state = TrainState()
    for score in scores:
        state.update_best(metrics(score), small_net(), early_stop)
    assert state.is_stale(early_stop) == stale
    assert not state.is_stale(None)
