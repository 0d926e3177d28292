"""Numbers that a report computes of predictions, against scikit-learn and plain loops."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, recall_score

from resnet_builder.reports.accuracy import (
    class_accuracies,
    clustered,
    confusion,
    draw_class_accuracies,
    draw_confusion,
    wilson_interval,
)
from resnet_builder.reports.calibration import (
    calibration,
    coverage,
    draw_calibration,
    draw_coverage,
)
from resnet_builder.reports.gallery import least_certain, most_confident_mistakes
from resnet_builder.runs.predictions import RunPredictions


def predictions(
    classes: int = 7, images: int = 500, seed: int = 0, skill: float = 2.0
) -> RunPredictions:
    """Draw predictions; those of the first classes are better."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += skill
    return of_logits(logits, labels)


def of_logits(logits: Any, labels: Any) -> RunPredictions:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True, initial=0))
    shares /= shares.sum(axis=1, keepdims=True)
    shares = shares.astype(np.float32)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    return RunPredictions(
        split="test",
        step=9,
        classes=tuple(f"class {number}" for number in range(logits.shape[1])),
        labels=labels.astype(np.int32),
        top_classes=order.astype(np.int32),
        top_probabilities=np.take_along_axis(shares, order, axis=1),
        label_probabilities=shares[np.arange(len(labels)), labels],
    )


def test_accuracies_are_the_recalls_of_scikit_learn() -> None:
    found = predictions()
    measured = class_accuracies(found)
    recalls = recall_score(found.labels, found.predicted, average=None)
    assert [one.accuracy for one in measured.classes] == pytest.approx(recalls)
    assert [one.images for one in measured.classes] == np.bincount(found.labels).tolist()
    assert measured.mean == pytest.approx(recalls.mean())


@pytest.mark.parametrize(("correct", "images"), [(0, 5), (3, 7), (40, 40), (999, 1000)])
def test_interval_is_wilsons(correct: int, images: int) -> None:
    """Its ends are the shares whose normal interval the measured share is an end of."""
    low, high = wilson_interval(correct, images)
    for end in (low, high):
        deviation = (end * (1 - end) / images) ** 0.5
        assert abs(correct / images - end) == pytest.approx(1.959964 * deviation, abs=1e-6)
    assert 0 <= low <= correct / images <= high <= 1


def test_confusion_is_that_of_scikit_learn() -> None:
    found = predictions()
    measured, expected = confusion(found), confusion_matrix(found.labels, found.predicted)
    assert np.array(measured.counts).tolist() == expected.tolist()
    assert measured.order == tuple(range(7))
    off = sorted((-expected[i, j], i, j) for i in range(7) for j in range(7) if i != j)
    first = measured.pairs[0]
    assert first.images == -off[0][0]
    for pair in measured.pairs:
        label, other = (int(name.split()[1]) for name in (pair.label, pair.predicted))
        assert pair.images == expected[label, other]
        assert pair.share == pytest.approx(pair.images / expected[label].sum())
    assert [one.images for one in measured.pairs] == [-count for count, *_ in off[:20]]


def test_classes_that_are_confused_stand_together() -> None:
    """30 classes in five groups: confusion is within a group."""
    generator = np.random.default_rng(0)
    group = generator.permutation(30) % 5
    counts = 5 * (group[:, None] == group) + generator.integers(2, size=(30, 30))
    np.fill_diagonal(counts, 50)
    order = clustered(counts)
    assert sorted(order) == list(range(30))
    changes = (np.diff(group[order]) != 0).sum()
    assert changes == 4


def test_calibration_is_that_of_scikit_learn_and_of_a_plain_loop() -> None:
    found = predictions(classes=3)
    measured = calibration(found)
    confidence, correct = found.confidence.astype(float), found.correct
    accuracies, means = calibration_curve(correct, confidence, n_bins=15)
    used = [one for one in measured.bins if one.images]
    assert [one.accuracy for one in used] == pytest.approx(accuracies)
    assert [one.confidence for one in used] == pytest.approx(means)

    error, largest = 0.0, 0.0
    for number in range(15):
        of_bin = [
            (bool(right), sure)
            for right, sure in zip(correct, confidence, strict=True)
            if number / 15 < sure <= (number + 1) / 15
        ]
        if of_bin:
            gap = abs(sum(r for r, _ in of_bin) - sum(s for _, s in of_bin)) / len(of_bin)
            error += gap * len(of_bin) / len(correct)
            largest = max(largest, gap)
    assert measured.ece == pytest.approx(error)
    assert measured.mce == pytest.approx(largest)
    assert measured.accuracy == correct.mean()
    assert measured.confidence == pytest.approx(confidence.mean())
    assert sum(one.images for one in measured.bins) == measured.images == 500


def test_coverage_is_that_of_a_plain_loop() -> None:
    found = predictions(images=300)
    measured = coverage(found)
    ranked = sorted(
        zip(found.confidence.tolist(), found.correct.tolist(), strict=True), reverse=True
    )
    risks = []
    for count in range(1, 301):
        risks.append(1 - sum(right for _, right in ranked[:count]) / count)
    assert measured.area == pytest.approx(sum(risks) / 300)
    assert len(measured.points) == 100
    for point in measured.points:
        covered = [right for sure, right in ranked if sure >= (point.threshold or 0)]
        assert point.coverage == pytest.approx(len(covered) / 300)
        assert point.accuracy == pytest.approx(sum(covered) / len(covered))
    assert measured.points[-1].accuracy == pytest.approx(found.correct.mean())


def test_images_of_equal_confidence_are_covered_together() -> None:
    logits, labels = np.zeros((10, 2), dtype=np.float32), np.array([0, 1] * 5)
    measured = coverage(of_logits(logits, labels))
    assert [(one.coverage, one.accuracy) for one in measured.points] == [(1, 0.5)]
    assert measured.area == 0.5


def test_galleries_have_the_most_confident_mistakes_and_the_least_certain_images() -> None:
    found = predictions()
    mistakes, uncertain = most_confident_mistakes(found, 12), least_certain(found, 12)
    wrong = sorted(found.confidence[~found.correct].tolist(), reverse=True)
    assert [one.probability for one in mistakes.images] == wrong[:12]
    assert mistakes.total == len(wrong)
    assert [one.probability for one in uncertain.images] == sorted(found.confidence.tolist())[:12]
    for one in (*mistakes.images, *uncertain.images):
        assert one.label == found.classes[found.labels[one.index]]
        assert one.predicted == found.classes[found.top_classes[one.index, 0]]
        assert one.label_probability == found.label_probabilities[one.index]


def with_nan() -> RunPredictions:
    logits = np.zeros((6, 3), dtype=np.float32)
    logits[2:] = np.nan
    found = of_logits(logits, np.arange(6) % 3)
    found.top_classes[2:] = -1
    return found


def hostile() -> RunPredictions:
    names = ("<b>&amp;", "'\"></svg>", "\x1b[31m\udce9\n")
    found = predictions(classes=3, images=9, skill=0)
    return RunPredictions(**{**{n: getattr(found, n) for n in found.__slots__}, "classes": names})


CASES: dict[str, Callable[[], RunPredictions]] = {
    "usual": predictions,
    "two classes": lambda: predictions(classes=2),
    "thirty classes": lambda: predictions(classes=30),
    "a thousand classes": lambda: predictions(classes=1000, images=500, skill=3),
    "no mistake": lambda: predictions(skill=90),
    "one class predicted": lambda: of_logits(np.eye(4)[[0] * 8] * 5, np.arange(8) % 4),
    "a class without images": lambda: of_logits(np.eye(4)[[0, 1, 2]], np.array([0, 1, 1])),
    "not finite": with_nan,
    "nothing finite": lambda: of_logits(np.full((4, 3), np.nan), np.arange(4) % 3),
    "one image": lambda: predictions(images=1),
    "no image": lambda: predictions(images=0),
    "hostile names": hostile,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_any_predictions_can_be_drawn(case: str) -> None:
    found = CASES[case]()
    for html in (
        draw_class_accuracies(class_accuracies(found)),
        draw_confusion(confusion(found)),
        draw_calibration(calibration(found)),
        draw_coverage(coverage(found)),
    ):
        root = ElementTree.fromstring(f"<div>{html}</div>")
        words = " ".join(root.itertext())
        assert "nan" not in words.lower().replace("not finite", "")
    for choose in (most_confident_mistakes, least_certain):
        assert len(choose(found, 5).images) <= 5


def test_confusion_of_many_classes_is_a_list_of_pairs() -> None:
    found = confusion(CASES["a thousand classes"]())
    assert found.counts is None
    root = ElementTree.fromstring(f"<div>{draw_confusion(found)}</div>")
    assert root.find(".//svg") is None
    assert len(root.findall(".//tbody/tr")) == len(found.pairs) == 20
