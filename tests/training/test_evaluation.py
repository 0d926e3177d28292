"""Evaluation counts every image, draws no random number and leaves the network as it was."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from resnet_builder.errors import Stopped
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.metrics import NO_PREDICTION, Metrics, compute_metrics, score
from tests.training.recipes import images, labels, small_net


def batches(count: int = 10, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images(count).split(size), labels(count).split(size), strict=True))


def fixed(count: int = 97, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def metrics_of(logits: Tensor, labels: Tensor, batch: int = 10) -> Metrics:
    pairs = zip(logits.split(batch), labels.split(batch), strict=True)
    return compute_metrics([score(*pair) for pair in pairs], logits.shape[1])


def recalls(metrics: Metrics) -> tuple[float | None, ...]:
    return tuple(one.recall for one in metrics.by_class)


def test_evaluate_equals_the_network_on_all_images_at_once() -> None:
    model = small_net().eval()
    found = evaluate(model, batches())
    with torch.no_grad():
        logits = model(images(10))
    assert found.num_images == 10
    assert torch.equal(found.predictions, logits.argmax(1))
    expected = nn.functional.cross_entropy(logits, labels(10)).item()
    assert found.loss == pytest.approx(expected, rel=1e-5)


def test_evaluate_uses_evaluation_mode_and_restores_each_layers_mode() -> None:
    model = small_net(nn.Dropout(0.9)).train()
    model[1].eval()  # as a frozen batch norm is
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (evaluate(model, batches()) for _ in range(2))
    assert first.loss == second.loss
    assert [layer.training for layer in model] == [index != 1 for index in range(len(model))]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_evaluate_makes_no_graph() -> None:
    """One of the programs before kept what a backward pass needs."""
    graphs: list[bool] = []
    model = small_net()
    model.register_forward_hook(lambda _m, _i, output: graphs.append(output.requires_grad))
    evaluate(model, batches(8, 8))
    assert graphs == [False]


def test_reported_metrics_are_computed_without_tf32() -> None:
    model, seen = small_net(), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        evaluate(model, batches())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_the_convolutions(precision: str, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()
    model = small_net()
    model[3].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    evaluate(model, batches(), precision=precision)  # type: ignore[arg-type]
    assert seen == {dtype}


def test_stop_is_asked_at_every_batch() -> None:
    asked: Iterator[bool] = iter([False, True])
    with pytest.raises(Stopped, match="during an evaluation"):
        evaluate(small_net(), batches(), should_stop=lambda: next(asked))
    assert list(asked) == []


@pytest.mark.parametrize("batch", [1, 10, 96, 97])
def test_metrics_count_every_image_whatever_the_batch_size(batch: int) -> None:
    logits, labels = fixed()
    found = metrics_of(logits, labels, batch)
    probabilities = logits.double().softmax(1).numpy()
    names = labels.numpy()
    ranks = (-probabilities).argsort(1, kind="stable")
    assert found.num_images == 97
    assert found.loss == pytest.approx(-np.log(probabilities[range(97), names]).mean(), rel=1e-6)
    assert found.top1 == (ranks[:, 0] == names).mean()
    assert found.top5 == (ranks[:, :5] == names[:, None]).any(1).mean()
    expected = np.zeros((7, 7), dtype=np.int64)
    np.add.at(expected, (names, ranks[:, 0]), 1)
    assert np.array_equal(found.confusion(), expected)
    assert recalls(found) == tuple(expected.diagonal() / expected.sum(1))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_of_five_classes_or_fewer_there_is_no_top_five(classes: int) -> None:
    found = metrics_of(*fixed(20, classes))
    assert found.top5 is None
    assert found.named("val").keys() == {"val.loss", "val.top1"}
    assert metrics_of(*fixed(20, 6)).named("val").keys() > {"val.top5"}


def test_class_without_images_has_no_accuracy() -> None:
    found = metrics_of(torch.eye(3)[[0, 1, 0, 0]], torch.tensor([0, 0, 1, 0]))
    assert recalls(found) == (2 / 3, 0.0, None)
    assert found.confusion().tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("absent", ["no class", "never predicted", "without images", "both"])
def test_precision_recall_and_f1_are_those_of_scikit_learn(absent: str) -> None:
    logits, labels = fixed()
    if absent in {"never predicted", "both"}:
        logits[:, 3] = -9
    if absent in {"without images", "both"}:
        labels[labels == 3] = 4
    found = metrics_of(logits, labels)
    kinds = ("precision", "recall", "f1")

    expected = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(7), zero_division=0
    )
    for number, kind in enumerate(kinds):
        ours = [getattr(one, kind) or 0.0 for one in found.by_class]
        assert ours == pytest.approx(expected[number], abs=1e-12)
    assert [one.images for one in found.by_class] == expected[3].tolist()
    assert (found.by_class[3].recall is None) == (absent in {"without images", "both"})
    assert (found.by_class[3].f1 is None) == (absent == "both")
    for average in ("macro", "weighted"):
        means = precision_recall_fscore_support(
            labels, logits.argmax(1), average=average, zero_division=0
        )
        ours = [getattr(getattr(found, average), kind) for kind in kinds]
        assert ours == pytest.approx(means[:3], abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_never_right(bad: float) -> None:
    logits = torch.eye(6)
    logits[1] = bad
    found = metrics_of(logits, torch.arange(6))
    assert found.top1 == found.top5 == 5 / 6
    assert found.predictions.tolist() == [0, NO_PREDICTION, 2, 3, 4, 5]
    assert recalls(found) == (1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert found.named("val").keys() == {"val.top1", "val.top5"}


def test_equal_logits_are_no_better_than_the_first_class() -> None:
    """Counting how many logits are higher would call every image right."""
    found = metrics_of(torch.zeros(10, 10), torch.arange(10))
    assert (found.top1, found.top5) == (0.1, 0.5)
