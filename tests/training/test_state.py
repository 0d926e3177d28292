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
