"""Calibration of a run's probabilities, and accuracy of its most confident predictions."""

from dataclasses import dataclass

import numpy as np

from resnet_builder.reports.charts import Bin as ChartBin
from resnet_builder.reports.charts import Series, line_chart, reliability_diagram
from resnet_builder.reports.html import note, percent, table
from resnet_builder.reports.scale import Axis
from resnet_builder.runs.predictions import RunPredictions

BINS = 15

_POINTS = 100
_SHOWN_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose confidence, the probability of the predicted class, lies in an interval.

    Attributes:
        low: Lower end of the interval, exclusive.
        high: Upper end of the interval, inclusive.
        images: Number of images.
        accuracy: Share of them that are predicted rightly; ``None`` if there are none.
        confidence: Their mean confidence; ``None`` if there are none.
    """

    low: float
    high: float
    images: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration: how well confidence tells accuracy (Guo et al. 2017, section 2).

    Images whose logits are not finite have no confidence, and are left out.

    Attributes:
        split: ``test`` or ``val``.
        images: Number of images.
        accuracy: Share of them that are predicted rightly; ``None`` without images, as the next.
        confidence: Mean confidence.
        ece: Expected calibration error: mean gap of accuracy and confidence over the images.
        mce: Maximum calibration error: the largest gap of a bin.
        bins: 15 bins of equal width.
    """

    split: str
    images: int
    accuracy: float | None
    confidence: float | None
    ece: float | None
    mce: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """Accuracy of the images whose confidence reaches a threshold.

    Attributes:
        coverage: Their share of all images.
        accuracy: Share of them that are predicted rightly.
        threshold: Least confidence among them; ``None`` if one has none.
    """

    coverage: float
    accuracy: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Accuracy against coverage (risk-coverage curve of Geifman and El-Yaniv 2017).

    Attributes:
        split: ``test`` or ``val``.
        points: Points of the curve, at about each percent of the images, in rising order.
        area: Area under the risk-coverage curve (AURC): mean share of wrong predictions over all
            coverages; ``None`` without images.
    """

    split: str
    points: tuple[CoveragePoint, ...]
    area: float | None


def calibration(predictions: RunPredictions) -> Calibration:
    """Compute the calibration of the predicted classes' probabilities."""
    known = np.isfinite(predictions.confidence)
    confidence = predictions.confidence[known].astype(np.float64)
    correct = predictions.correct[known]
    edges = np.linspace(0, 1, BINS + 1)
    numbers = np.digitize(confidence, edges[1:-1], right=True)
    bins = []
    for number in range(BINS):
        of_bin = numbers == number
        images = int(of_bin.sum())
        accuracy = float(correct[of_bin].mean()) if images else None
        mean = float(confidence[of_bin].mean()) if images else None
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), images, accuracy, mean))
    gaps = [
        (one.images, abs(one.accuracy - one.confidence))
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    ]
    total = len(confidence)
    return Calibration(
        split=predictions.split,
        images=total,
        accuracy=float(correct.mean()) if total else None,
        confidence=float(confidence.mean()) if total else None,
        ece=sum(images * gap for images, gap in gaps) / total if total else None,
        mce=max(gap for _, gap in gaps) if total else None,
        bins=tuple(bins),
    )


def draw_calibration(found: Calibration) -> str:
    """Draw the reliability diagram, with the errors below it."""
    bins = [
        ChartBin(one.low, one.high, one.confidence or 0.0, one.accuracy or 0.0, one.images)
        for one in found.bins
    ]
    chart = reliability_diagram(bins, title="Reliability diagram")
    if found.ece is None or found.accuracy is None or found.confidence is None:
        return f'<div class="charts">\n<figure>{chart}</figure>\n</div>'
    rows = [
        ("expected calibration error (ECE, 15 bins)", percent(found.ece)),
        ("maximum calibration error (MCE)", percent(found.mce)),
        ("mean confidence", percent(found.confidence)),
        ("accuracy", percent(found.accuracy)),
    ]
    tendency = "overconfident" if found.confidence > found.accuracy else "underconfident"
    gap = 100 * abs(found.confidence - found.accuracy)
    told = note(
        f"The network is {tendency}: mean confidence and accuracy differ by {gap:.2f} points. On "
        "the dashed line they are equal. Pale blue is accuracy above the confidence; orange is the "
        "accuracy that is missing to it."
    )
    listed = table((), rows, numbers=1)
    return f'<div class="charts">\n<figure>{chart}</figure>\n<div>{listed}\n{told}</div>\n</div>'


def coverage(predictions: RunPredictions) -> Coverage:
    """Compute the accuracy of the most confident predictions, at each coverage.

    Images of equal confidence are covered together, so that their order does not count. An image
    without a prediction is covered last, and counts as wrong.
    """
    total = predictions.num_images
    if not total:
        return Coverage(predictions.split, (), None)
    confidence = np.where(np.isfinite(predictions.confidence), predictions.confidence, -1.0)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1
    right = predictions.correct[order].cumsum()[ends - 1]
    accuracies = right / ends
    area = float(((1 - accuracies) * np.diff(ends, prepend=0)).sum() / total)
    wanted = np.ceil(np.arange(1, _POINTS + 1) * total / _POINTS)
    kept = np.unique(np.searchsorted(ends, wanted))
    points = tuple(
        CoveragePoint(
            float(ends[number] / total),
            float(accuracies[number]),
            float(ranked[ends[number] - 1]) if ranked[ends[number] - 1] >= 0 else None,
        )
        for number in kept.tolist()
    )
    return Coverage(predictions.split, points, area)


def draw_coverage(found: Coverage) -> str:
    """Draw accuracy against coverage, and list some coverages."""
    line = Series(
        "",
        [100 * point.coverage for point in found.points],
        [100 * point.accuracy for point in found.points],
    )
    chart = line_chart(
        [line],
        title="Accuracy against coverage",
        x=Axis("most confident images", limits=(0, 100), unit="%"),
        y=Axis("accuracy", unit="%"),
    )
    rows: list[tuple[str, str, str]] = []
    for wanted in _SHOWN_COVERAGES:
        point = next((one for one in found.points if one.coverage >= wanted), None)
        if point is not None:
            threshold = "" if point.threshold is None else f"{point.threshold:.3f}"
            row = (percent(point.coverage, 1), percent(point.accuracy), threshold)
            rows += [row] if row not in rows else []
    heads = ("images covered", "accuracy", "least confidence")
    area = "" if found.area is None else f" Area under the risk-coverage curve: {found.area:.4f}."
    told = note(
        f"Less confident predictions are left out, as where a person decides instead.{area}"
    )
    listed = table(heads, rows, numbers=3)
    return f'<div class="charts">\n<figure>{chart}</figure>\n<div>{listed}\n{told}</div>\n</div>'
