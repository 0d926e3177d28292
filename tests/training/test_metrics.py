"""Every metric is scikit-learn's, and every image counts."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from resnet_builder.training.metrics import NO_ANSWER, Evaluation, score, summarise


def fixed(count: int = 97, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def evaluated(logits: Tensor, labels: Tensor, batch: int = 10) -> Evaluation:
    scores = [score(*pair) for pair in zip(logits.split(batch), labels.split(batch), strict=True)]
    return summarise(scores, labels, logits.shape[1])


def test_metrics_equal_scikit_learns() -> None:
    logits, labels = fixed()
    found = evaluated(logits, labels)
    probabilities, names = logits.double().softmax(1).numpy(), list(range(7))
    assert found.loss == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=names), rel=1e-6
    )
    assert found.top1 == sklearn.metrics.accuracy_score(labels, logits.argmax(1))
    assert found.top5 == sklearn.metrics.top_k_accuracy_score(
        labels, probabilities, k=5, labels=names
    )
    recalls = sklearn.metrics.recall_score(labels, logits.argmax(1), average=None, labels=names)
    assert found.per_class == tuple(recalls)
    expected = sklearn.metrics.confusion_matrix(labels, logits.argmax(1), labels=names)
    assert np.array_equal(found.confusion(), expected)


@pytest.mark.parametrize("batch", [1, 10, 96, 97])
def test_the_short_last_batch_counts(batch: int) -> None:
    logits, labels = fixed()
    found = evaluated(logits, labels, batch)
    assert found.images == 97
    assert found.top1 == (logits.argmax(1) == labels).sum().item() / 97
    assert found.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits.double(), labels).item(), rel=1e-6
    )


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_of_few_classes_all_are_among_the_top_five(classes: int) -> None:
    assert evaluated(*fixed(20, classes)).top5 == 1.0


def test_a_class_without_images_has_no_accuracy() -> None:
    logits, labels = torch.eye(3)[[0, 1, 0, 0]], torch.tensor([0, 0, 1, 0])
    found = evaluated(logits, labels)
    assert found.per_class == (2 / 3, 0.0, None)
    assert found.confusion().tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_never_right(bad: float) -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    logits[1] = bad
    found = evaluated(logits, labels)
    assert found.top1 == found.top5 == 2 / 3
    assert found.predicted.tolist() == [0, NO_ANSWER, 2]
    assert found.per_class == (1.0, 0.0, 1.0)
    assert math.isnan(found.loss)


def test_equal_logits_are_no_better_than_the_first_class() -> None:
    """Counting how many logits are higher would call every image right."""
    found = evaluated(torch.zeros(10, 10), torch.arange(10))
    assert (found.top1, found.top5) == (0.1, 0.5)


def test_metrics_that_are_not_finite_have_no_name() -> None:
    logits = torch.full((2, 3), math.nan)
    assert evaluated(logits, torch.tensor([0, 1])).metrics("val") == {
        "val.top1": 0.0,
        "val.top5": 0.0,
    }
