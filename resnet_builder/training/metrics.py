"""What a network's answers are worth: loss, top-1, top-5, by class, and confusions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

TOP = 5
NO_ANSWER = -1
"""Stands for the predicted class where an image's logits are not all finite: never right."""


class Scores(NamedTuple):
    """What is kept of a batch's logits, still on the device.

    Attributes:
        losses: ``(B,)`` float32 cross entropies.
        predicted: ``(B,)`` int64 classes, or :data:`NO_ANSWER`.
        in_top5: ``(B,)`` bool; whether the label is among the five likeliest classes.
    """

    losses: Tensor
    predicted: Tensor
    in_top5: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a network scored on a split; every image counts once. Metrics are fractions.

    Attributes:
        loss: Mean cross entropy, of unsmoothed labels.
        top1: Images whose likeliest class is right.
        top5: Images whose class is among the five likeliest, or among all if they are fewer.
        predicted: ``(N,)`` int64, on the CPU: the likeliest classes, or :data:`NO_ANSWER`.
        labels: ``(N,)`` int64, on the CPU: the right ones.
        num_classes: K.
    """

    loss: float
    top1: float
    top5: float
    predicted: Tensor
    labels: Tensor
    num_classes: int

    @property
    def images(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """Top-1 of each class's images; ``None`` for a class without any."""
        confusion = self.confusion()
        images = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        hits = confusion.diagonal().tolist()
        return tuple(hit / n if n else None for hit, n in zip(hits, images, strict=True))

    def metrics(self, split: str) -> dict[str, float]:
        """Return loss, top-1 and top-5 by names like ``val.top1``; if it is finite."""
        metrics = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        return {f"{split}.{name}": v for name, v in metrics.items() if math.isfinite(v)}

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count images by label (row) and predicted class (column): ``(K, K)``.

        Images without an answer are in no column.
        """
        from sklearn.metrics import confusion_matrix  # imported where it is needed: it takes 1 s

        return confusion_matrix(
            self.labels.numpy(), self.predicted.numpy(), labels=range(self.num_classes)
        )


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score a batch.

    Args:
        logits: ``(B, K)`` float32.
        labels: ``(B,)`` int64.
    """
    finite = logits.isfinite().all(dim=1)
    likeliest = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    return Scores(
        losses=functional.cross_entropy(logits, labels, reduction="none"),
        predicted=likeliest[:, 0].where(finite, NO_ANSWER),
        in_top5=(likeliest == labels[:, None]).any(dim=1) & finite,
    )


def summarise(scores: Sequence[Scores], labels: Tensor, num_classes: int) -> Evaluation:
    """Bring the scores of all batches to the host and sum them up.

    Args:
        scores: Of at least one batch.
        labels: ``(N,)`` int64, of all batches.
        num_classes: K.
    """
    losses, predicted, in_top5 = (torch.cat(parts).cpu() for parts in zip(*scores, strict=True))
    labels = labels.cpu()
    return Evaluation(
        loss=losses.double().mean().item(),
        top1=(predicted == labels).double().mean().item(),
        top5=in_top5.double().mean().item(),
        predicted=predicted,
        labels=labels,
        num_classes=num_classes,
    )
