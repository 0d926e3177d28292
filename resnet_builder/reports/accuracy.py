"""Accuracy of each class, and confusion of classes, from the predictions of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_builder.errors import counted
from resnet_builder.reports.charts import Bar, bar_chart, heat_map
from resnet_builder.reports.html import note, percent, table
from resnet_builder.reports.scale import Axis
from resnet_builder.runs.predictions import NOT_FINITE, RunPredictions
from resnet_builder.runs.records import ClassScores

MAX_IN_MATRIX = 100
"""Most classes of a confusion matrix; of more, only the most confused pairs are shown."""

_MAX_IN_ORDER = 20  # above, classes that are confused stand together
_MAX_PAIRS = 20
_PAIRS_BESIDE_MATRIX = 10
_MAX_BARS = 40
_SHOWN_AT_ENDS = 15
_Z = 1.959963984540054  # of the normal distribution, for an interval of 95 %


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Accuracy of a class: the fraction of its images that are predicted as it (recall).

    Attributes:
        name: Name of the class.
        images: Number of its images.
        correct: Number of those that are predicted as the class.
        accuracy: Their share; ``None`` if there are no images.
        low: Lower end of the 95 % interval of Wilson 1927.
        high: Upper end of it.
    """

    name: str
    images: int
    correct: int
    accuracy: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassAccuracies:
    """Accuracies of all classes.

    Attributes:
        split: ``test`` or ``val``.
        classes: Accuracy of each class, in the order of the classes.
        mean: Mean over the classes that have images (balanced accuracy); ``None`` without any.
    """

    split: str
    classes: tuple[ClassAccuracy, ...]
    mean: float | None


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Images of a class that are predicted as another.

    Attributes:
        label: Class of the images.
        predicted: Predicted class.
        images: Number of these images.
        share: Their share of all images of the class.
    """

    label: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Confusion matrix.

    Attributes:
        split: ``test`` or ``val``.
        classes: Names of the classes.
        counts: Number of images by label (row) and predicted class (column); ``None`` of more than
            :data:`MAX_IN_MATRIX` classes.
        order: Order of the classes in which those that are confused stand together.
        pairs: Most confused pairs, those of the most images first.
        without_prediction: Number of images whose logits are not finite, which are in no column.
    """

    split: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...] | None
    order: tuple[int, ...]
    pairs: tuple[ConfusedPair, ...]
    without_prediction: int


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), which stays within 0 and 1."""
    share = correct / images
    middle = share + _Z**2 / (2 * images)
    half = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    scale = 1 + _Z**2 / images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def class_accuracies(predictions: RunPredictions) -> ClassAccuracies:
    """Compute the accuracy of each class."""
    images = np.bincount(predictions.labels, minlength=len(predictions.classes))
    correct = np.bincount(
        predictions.labels[predictions.correct], minlength=len(predictions.classes)
    )
    counts = zip(predictions.classes, images.tolist(), correct.tolist(), strict=True)
    return _class_accuracies(predictions.split, [_class_accuracy(*one) for one in counts])


def accuracies_of_scores(split: str, scores: dict[str, ClassScores]) -> ClassAccuracies:
    """Read the accuracy of each class from the recalls of ``result.json``."""
    return _class_accuracies(
        split,
        [
            _class_accuracy(name, one.images, round((one.recall or 0.0) * one.images))
            for name, one in scores.items()
        ],
    )


def _class_accuracy(name: str, images: int, correct: int) -> ClassAccuracy:
    if not images:
        return ClassAccuracy(name, 0, 0, None, None, None)
    return ClassAccuracy(name, images, correct, correct / images, *wilson_interval(correct, images))


def _class_accuracies(split: str, classes: list[ClassAccuracy]) -> ClassAccuracies:
    known = [one.accuracy for one in classes if one.accuracy is not None]
    return ClassAccuracies(split, tuple(classes), sum(known) / len(known) if known else None)


def draw_class_accuracies(found: ClassAccuracies) -> str:
    """Draw the classes as bars, the best first; of many, those at both ends."""
    known = [one for one in found.classes if one.accuracy is not None]
    ranked = sorted(known, key=lambda one: -(one.accuracy or 0.0))
    unknown = [one for one in found.classes if one.accuracy is None]
    if len(found.classes) <= _MAX_BARS:
        charts = [_bars([*ranked, *unknown], _images_of(found.split))]
    else:
        charts = [
            _bars(ranked[:_SHOWN_AT_ENDS], f"The {_SHOWN_AT_ENDS} classes of the highest accuracy"),
            _bars(ranked[-_SHOWN_AT_ENDS:], f"The {_SHOWN_AT_ENDS} classes of the lowest accuracy"),
        ]
    figures = "\n".join(f"<figure>{chart}</figure>" for chart in charts)
    mean = "" if found.mean is None else f" Mean over the classes: {percent(found.mean)}."
    told = note(f"Lines are 95 % intervals (Wilson), n is the number of images.{mean}")
    return f'<div class="charts">\n{figures}\n</div>\n{told}'


def _images_of(split: str) -> str:
    return "Test images" if split == "test" else "Validation images"


def _bars(classes: Sequence[ClassAccuracy], title: str) -> str:
    bars = [
        Bar(
            one.name,
            None if one.accuracy is None else 100 * one.accuracy,
            None if one.low is None else 100 * one.low,
            None if one.high is None else 100 * one.high,
            f"n = {one.images:,}",
        )
        for one in classes
    ]
    return bar_chart(bars, title=title, x=Axis("accuracy", limits=(0, 100), unit="%"))


def confusion(predictions: RunPredictions) -> Confusion:
    """Count images by label and predicted class."""
    number = len(predictions.classes)
    has_prediction = predictions.predicted != NOT_FINITE
    cells = predictions.labels.astype(np.int64) * number + predictions.predicted
    used, images = np.unique(cells[has_prediction], return_counts=True)
    totals = np.bincount(predictions.labels, minlength=number)
    labels, predicted = np.divmod(used, number)
    # The most images first; of equal ones, those of the larger share, then in the classes' order.
    wrong = np.flatnonzero(labels != predicted)
    ranked = wrong[np.lexsort((used[wrong], totals[labels[wrong]], -images[wrong]))]
    pairs = tuple(
        ConfusedPair(
            predictions.classes[labels[cell]],
            predictions.classes[predicted[cell]],
            int(images[cell]),
            float(images[cell] / totals[labels[cell]]),
        )
        for cell in ranked[:_MAX_PAIRS]
    )
    counts = None
    order = tuple(range(number))
    if number <= MAX_IN_MATRIX:
        matrix = np.zeros((number, number), dtype=np.int64)
        matrix[labels, predicted] = images
        counts = tuple(map(tuple, matrix.tolist()))
        if number > _MAX_IN_ORDER:
            order = tuple(clustered(matrix))
    return Confusion(
        predictions.split,
        predictions.classes,
        counts,
        order,
        pairs,
        without_prediction=int((~has_prediction).sum()),
    )


def clustered(counts: npt.NDArray[np.int64]) -> list[int]:
    """Order classes so that those which are confused stand together.

    The clusters of the highest mean confusion are joined, again and again (average linkage), end
    to end where their ends are confused most.

    Args:
        counts: ``(K, K)`` confusion matrix.

    Returns:
        The K classes in their new order.
    """
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    between = shares + shares.T
    clusters = {number: [number] for number in range(len(counts))}
    mean = between.copy()
    np.fill_diagonal(mean, -1.0)
    while len(clusters) > 1:
        one, other = sorted(divmod(int(mean.argmax()), len(counts)))
        first, second = clusters[one], clusters.pop(other)
        sizes = len(first), len(second)
        clusters[one] = max(
            (a + b for a in (first, first[::-1]) for b in (second, second[::-1])),
            key=lambda joined: between[joined[sizes[0] - 1], joined[sizes[0]]],
        )
        merged = (sizes[0] * mean[one] + sizes[1] * mean[other]) / sum(sizes)
        merged[[one, other]] = -1.0
        merged[mean[one] < 0] = -1.0
        mean[one], mean[:, one] = merged, merged
        mean[other], mean[:, other] = -1.0, -1.0
    [order] = clusters.values()
    return order


def draw_confusion(found: Confusion) -> str:
    """Draw the confusion matrix, and list the most confused pairs."""
    parts = []
    if found.counts is not None:
        matrix = np.array(found.counts, dtype=np.int64).reshape(2 * (len(found.classes),))
        order = list(found.order)
        names = [found.classes[number] for number in order]
        title = f"{_images_of(found.split)}: {matrix.sum():,}"
        chart = heat_map(matrix[np.ix_(order, order)], names, title=title)
        parts.append(f'<div class="charts">\n<figure>{chart}</figure>\n</div>')
        if found.order != tuple(range(len(found.classes))):
            parts.append(note("Classes that are confused stand together."))
    if found.pairs:
        shown = found.pairs[: None if found.counts is None else _PAIRS_BESIDE_MATRIX]
        rows = [(one.label, one.predicted, f"{one.images:,}", percent(one.share)) for one in shown]
        heads = ("true class", "predicted class", "images", "of the class")
        listed = table(heads, rows, numbers=2)
        if found.counts is None:
            parts.append(listed)
        else:
            summary = "<summary>Most confused pairs</summary>"
            inner = f'<div style="padding: 0 .95rem">{listed}</div>'
            parts.append(f"<details>{summary}\n{inner}\n</details>")
    else:
        parts.append(note("No image is predicted wrongly."))
    if found.without_prediction:
        count = counted(found.without_prediction, "image")
        parts.append(note(f"{count} with logits that are not finite: in no column."))
    return "\n".join(parts)
