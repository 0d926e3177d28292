"""Metrics of a network on a split: loss, top-1, top-5, scores of each class, confusion matrix."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """Metrics of a network on a split, in which every image counts once. Accuracies are fractions.

    Attributes:
        loss: Mean cross entropy, without label smoothing.
        top1: Fraction of the images whose likeliest class is the label.
        top5: Fraction of the images whose label is among the five likeliest classes; ``None``
            where there are no more than five.
        predictions: ``(N,)`` int64, on the CPU: likeliest classes, or :data:`NO_PREDICTION`.
        labels: ``(N,)`` int64, on the CPU.
        num_classes: Number of classes, K.
        precision: Precision in which they were computed.
        probabilities: ``(N, K)`` float32, on the CPU: softmax of the logits, if it was asked for.
    """

    loss: float
    top1: float
    top5: float | None
    predictions: Tensor
    labels: Tensor
    num_classes: int
    precision: Precision = "fp32"
    probabilities: Tensor | None = None

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
        confusion = self.confusion()
        images = torch.bincount(self.labels, minlength=self.num_classes)
        counts = (confusion.diagonal(), confusion.sum(axis=0), images)
        return tuple(map(_class_scores, *(numbers.tolist() for numbers in counts)))

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

    def named(self, split: str) -> dict[str, float]:
        """Return loss, top-1 and top-5 by names like ``val.top1``, as far as they mean anything."""
        named = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        return {
            f"{split}.{name}": value
            for name, value in named.items()
            if value is not None and math.isfinite(value)
        }

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count images by label (row) and predicted class (column).

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
    """Scores of the images of a batch, each ``(B,)``, on the device.

    Attributes:
        losses: Cross entropies.
        predictions: Predicted classes, or :data:`NO_PREDICTION`.
        in_top5: Whether the label is among the five likeliest classes.
        labels: Labels.
        probabilities: ``(B, K)`` softmax of the logits; ``(B, 0)`` if nobody asked for it.
    """

    losses: Tensor
    predictions: Tensor
    in_top5: Tensor
    labels: Tensor
    probabilities: Tensor


def score(logits: Tensor, labels: Tensor, *, with_probabilities: bool = False) -> Scores:
    """Score ``(B, K)`` float32 logits."""
    # topk, not a count of higher logits: of equal logits only one may be the prediction.
    finite = logits.isfinite().all(dim=1)
    likeliest = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    return Scores(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        predictions=likeliest[:, 0].where(finite, NO_PREDICTION),
        in_top5=(likeliest == labels[:, None]).any(dim=1) & finite,
        labels=labels,
        probabilities=logits.softmax(dim=1) if with_probabilities else logits[:, :0],
    )


def compute_metrics(
    scores: Sequence[Scores], num_classes: int, precision: Precision = "fp32"
) -> Metrics:
    """Copy the scores of at least one batch to the CPU, and average them."""
    losses, predictions, in_top5, labels, probabilities = (
        torch.cat(parts).cpu() for parts in zip(*scores, strict=True)
    )
    return Metrics(
        loss=losses.double().mean().item(),
        top1=(predictions == labels).double().mean().item(),
        top5=in_top5.double().mean().item() if num_classes > TOP_K else None,
        predictions=predictions,
        labels=labels,
        num_classes=num_classes,
        precision=precision,
        probabilities=probabilities if probabilities.numel() else None,
    )
