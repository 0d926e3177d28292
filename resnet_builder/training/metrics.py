"""Metrics of a network on a split: loss, top-1, top-5, accuracy by class, confusion matrix."""

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
    """

    loss: float
    top1: float
    top5: float | None
    predictions: Tensor
    labels: Tensor
    num_classes: int
    precision: Precision = "fp32"

    @property
    def num_images(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def has_predictions(self) -> bool:
        """Whether the logits of any image are finite."""
        return bool((self.predictions != NO_PREDICTION).any())

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """Top-1 accuracy of each class; ``None`` for a class without images."""
        counts = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        correct = self.confusion().diagonal().tolist()
        return tuple(right / n if n else None for right, n in zip(correct, counts, strict=True))

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


class Scores(NamedTuple):
    """Scores of the images of a batch, each ``(B,)``, on the device.

    Attributes:
        losses: Cross entropies.
        predictions: Predicted classes, or :data:`NO_PREDICTION`.
        in_top5: Whether the label is among the five likeliest classes.
        labels: Labels.
    """

    losses: Tensor
    predictions: Tensor
    in_top5: Tensor
    labels: Tensor


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score ``(B, K)`` float32 logits."""
    # topk, not a count of higher logits: of equal logits only one may be the prediction.
    finite = logits.isfinite().all(dim=1)
    likeliest = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    return Scores(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        predictions=likeliest[:, 0].where(finite, NO_PREDICTION),
        in_top5=(likeliest == labels[:, None]).any(dim=1) & finite,
        labels=labels,
    )


def compute_metrics(
    scores: Sequence[Scores], num_classes: int, precision: Precision = "fp32"
) -> Metrics:
    """Copy the scores of at least one batch to the CPU, and average them."""
    losses, predictions, in_top5, labels = (
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
    )
