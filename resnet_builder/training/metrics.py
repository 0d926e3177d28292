"""Metrics of a network on a split: loss, top-1, top-5, scores of each class, confusion matrix.

Where images have several labels, a class is predicted if its probability is above one half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from resnet_builder.device import Precision
from resnet_builder.runs.records import ClassScores

TOP_K = 5

NO_PREDICTION = -1
"""Predicted class of an image whose logits are not all finite: it equals no label."""


class TopClasses(NamedTuple):
    """Likeliest classes of N images, on the CPU.

    Attributes:
        classes: ``(N, k)`` int64, the likeliest first; :data:`NO_PREDICTION` where the logits of an
            image are not all finite. k is 5, or K if that is less.
        probabilities: ``(N, k)`` float32: their softmax; NaN where the logits are not all finite.
        of_label: ``(N,)`` float32: softmax of the label; NaN likewise.
    """

    classes: Tensor
    probabilities: Tensor
    of_label: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """Metrics of a network on a split, in which every image counts once. Accuracies are fractions.

    Attributes:
        loss: Mean cross entropy, without label smoothing; binary, with several labels.
        top1: Fraction of the images whose likeliest class is the label; with several labels, of
            those that have all classes predicted right (subset accuracy).
        top5: Fraction of the images whose label is among the five likeliest classes; ``None``
            where there are no more than five, or several labels.
        predictions: ``(N,)`` int64, on the CPU: likeliest classes, or :data:`NO_PREDICTION`. With
            several labels ``(N, K)`` int8: 1 for predicted classes, 0 for others.
        labels: ``(N,)`` int64, or ``(N, K)`` uint8 of several labels, on the CPU.
        num_classes: Number of classes, K.
        precision: Precision in which they were computed.
        probabilities: ``(N, K)`` float32, on the CPU: softmax of the logits, if it was asked for;
            with several labels, always and their sigmoid.
        map: Mean average precision over the classes that any image has, with several labels.
        top: Likeliest classes and their probabilities; ``None`` with several labels.
        monitor: Metric that selects the best weights, as ``macro_recall``, if the recipe names one.
    """

    loss: float
    top1: float
    top5: float | None
    predictions: Tensor
    labels: Tensor
    num_classes: int
    precision: Precision = "fp32"
    probabilities: Tensor | None = None
    map: float | None = None
    top: TopClasses | None = None
    monitor: str | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def monitored(self) -> str:
        """Name of the metric that selects the best weights: by default top-1, or ``map``."""
        return self.monitor or ("top1" if self.map is None else "map")

    @property
    def score(self) -> float:
        """Value of the metric that selects the best weights; the higher, the better."""
        value = self._values()[self.monitored]
        assert value is not None, "a metric is monitored where it means something"
        return -value if self.monitored == "loss" else value

    @property
    def num_images(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def has_predictions(self) -> bool:
        """Whether the logits of any image are finite."""
        return bool((self.predictions != NO_PREDICTION).any())

    @property
    def by_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall and F1 of each class; recall is its top-1 accuracy."""
        return tuple(_class_scores(*counts) for counts in self._class_counts())

    @property
    def macro(self) -> ClassScores:
        """Means over the classes that any image has or is predicted as.

        A score that is not defined counts as 0, as in scikit-learn.
        """
        return _mean([(1, one) for one in self.by_class if one.f1 is not None])

    @property
    def weighted(self) -> ClassScores:
        """Means over the classes, each of which counts by its number of images."""
        return _mean([(one.images, one) for one in self.by_class])

    @property
    def micro(self) -> ClassScores | None:
        """Scores of all decisions together, with several labels; otherwise all are the top-1."""
        totals = map(sum, zip(*self._class_counts(), strict=True))
        return _class_scores(*totals) if self.multi_label else None

    def _class_counts(self) -> list[tuple[int, int, int]]:
        """Numbers of images of each class: predicted rightly, predicted, and all that have it."""
        if self.multi_label:
            predicted, present = self.predictions == 1, self.labels == 1
            counts = (one.sum(dim=0) for one in (predicted & present, predicted, present))
        else:
            confusion = torch.from_numpy(self.confusion())
            images = torch.bincount(self.labels, minlength=self.num_classes)
            counts = (one for one in (confusion.diagonal(), confusion.sum(dim=0), images))
        return list(zip(*(numbers.tolist() for numbers in counts), strict=True))

    def named(self, split: str) -> dict[str, float]:
        """Return loss, top-1 and the like by names as ``val.top1``, if they mean anything."""
        return {
            f"{split}.{name}": value
            for name, value in self._values().items()
            if value is not None and math.isfinite(value)
        }

    def _values(self) -> dict[str, float | None]:
        """Values of the metrics that are recorded, by their names."""
        values = {"loss": self.loss, "top1": self.top1, "top5": self.top5, "map": self.map}
        if self.monitor in {"macro_recall", "macro_f1"}:
            values[self.monitor] = getattr(self.macro, self.monitor.removeprefix("macro_"))
        return values

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count images of one label each by it (row) and by predicted class (column).

        Returns:
            ``(K, K)``. Images without a prediction are in no column.
        """
        has_prediction = self.predictions != NO_PREDICTION
        cells = self.labels * self.num_classes + self.predictions
        counts = torch.bincount(cells[has_prediction], minlength=self.num_classes**2)
        matrix: npt.NDArray[np.int64] = counts.view(self.num_classes, self.num_classes).numpy()
        return matrix


def _class_scores(correct: int, predicted: int, images: int) -> ClassScores:
    """Scores of a class, from its numbers of images."""
    if not predicted and not images:
        return ClassScores(images=0)
    return ClassScores(
        images=images,
        precision=correct / predicted if predicted else 0.0,
        recall=correct / images if images else None,
        f1=2 * correct / (predicted + images),
    )


def _mean(weighted: Sequence[tuple[int, ClassScores]]) -> ClassScores:
    total = sum(weight for weight, _ in weighted)
    means = {
        name: sum(weight * (getattr(one, name) or 0.0) for weight, one in weighted) / max(total, 1)
        for name in ("precision", "recall", "f1")
    }
    return ClassScores(images=sum(one.images for _, one in weighted), **means)


class Scores(NamedTuple):
    """Scores of the images of a batch, on the device: as in :class:`Metrics`, or ``(B,)``.

    Attributes:
        losses: Cross entropies.
        predictions: Predicted classes, or :data:`NO_PREDICTION`, of the image or of each class.
        in_top5: Whether the label is among the five likeliest classes.
        labels: Labels.
        probabilities: ``(B, K)`` softmax of the logits; ``(B, 0)`` if nobody asked for it.
        top_classes: ``(B, k)`` as in :class:`TopClasses`; ``(B, 0)`` with several labels, and the
            last two likewise.
        top_probabilities: ``(B, k)`` their probabilities.
        of_label: ``(B, 1)`` probability of the label.
    """

    losses: Tensor
    predictions: Tensor
    in_top5: Tensor
    labels: Tensor
    probabilities: Tensor
    top_classes: Tensor
    top_probabilities: Tensor
    of_label: Tensor


def score(logits: Tensor, labels: Tensor, *, with_probabilities: bool = False) -> Scores:
    """Score ``(B, K)`` float32 logits."""
    if labels.ndim == 2:
        return _score_several(logits, labels)
    # topk, not a count of higher logits: of equal logits only one may be the prediction.
    finite = logits.isfinite().all(dim=1)
    likeliest = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    softmax = logits.softmax(dim=1)
    return Scores(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        predictions=likeliest[:, 0].where(finite, NO_PREDICTION),
        in_top5=(likeliest == labels[:, None]).any(dim=1) & finite,
        labels=labels,
        probabilities=softmax if with_probabilities else logits[:, :0],
        top_classes=likeliest.where(finite[:, None], NO_PREDICTION),
        top_probabilities=softmax.gather(1, likeliest).where(finite[:, None], torch.nan),
        of_label=softmax.gather(1, labels[:, None]).where(finite[:, None], torch.nan),
    )


def _score_several(logits: Tensor, labels: Tensor) -> Scores:
    finite = logits.isfinite().all(dim=1)
    losses = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    return Scores(
        losses=losses.mean(dim=1),
        predictions=(logits > 0).to(torch.int8).where(finite[:, None], NO_PREDICTION),
        in_top5=torch.zeros_like(finite),
        labels=labels,
        probabilities=logits.sigmoid(),
        top_classes=labels[:, :0],
        top_probabilities=logits[:, :0],
        of_label=logits[:, :0],
    )


def compute_metrics(
    scores: Sequence[Scores], num_classes: int, precision: Precision = "fp32"
) -> Metrics:
    """Copy the scores of at least one batch to the CPU, and average them."""
    found = Scores(*(torch.cat(parts).cpu() for parts in zip(*scores, strict=True)))
    losses, predictions, in_top5, labels, probabilities = found[:5]
    several = labels.ndim == 2
    correct = (predictions == labels).all(dim=1) if several else predictions == labels
    has_top5 = num_classes > TOP_K and not several
    top = TopClasses(found.top_classes, found.top_probabilities, found.of_label.flatten())
    return Metrics(
        loss=losses.double().mean().item(),
        top1=correct.double().mean().item(),
        top5=in_top5.double().mean().item() if has_top5 else None,
        predictions=predictions,
        labels=labels,
        num_classes=num_classes,
        precision=precision,
        probabilities=probabilities if probabilities.numel() else None,
        map=_mean_average_precision(probabilities, labels) if several else None,
        top=None if several else top,
    )


def _mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean of scikit-learn's ``average_precision_score`` over the classes that any image has."""
    columns = zip(scores.nan_to_num(0).T, labels.T, strict=True)
    found = [_average_precision(*column) for column in columns if column[1].any()]
    return sum(found) / len(found) if found else 0.0


def _average_precision(scores: Tensor, labels: Tensor) -> float:
    """Sum of the precisions at each threshold, by the rise of recall that it brings."""
    scores, order = scores.sort(descending=True)
    hits = labels[order].double().cumsum(dim=0)
    is_last = torch.ones_like(scores, dtype=torch.bool)
    is_last[:-1] = scores[1:] != scores[:-1]  # equal scores fall to one threshold
    precision = hits[is_last] / (is_last.nonzero()[:, 0] + 1)
    rises = hits[is_last].diff(prepend=hits.new_zeros(1))
    return float((precision * rises).sum() / hits[-1])
