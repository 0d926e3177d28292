"""Evaluation of a network on a split of the images, and its metrics."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import ImageSource, Stop, never
from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import MEMORY_FORMATS, Precision, full_precision, memory_format
from resnet_builder.errors import Stopped
from resnet_builder.model import fuse_conv_bn
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext

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


@full_precision()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: Precision = "fp32",
    cpu_kernels: bool = True,
    should_stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Metrics:
    """Evaluate ``model`` on every image of ``batches``; the mode of each layer is restored.

    Batch norms are folded into the convolutions before them, which changes logits by rounding.

    Args:
        model: The network, on the batches' device.
        batches: ``(B, C, H, W)`` float32 normalised images and ``(B,)`` int64 labels; at
            least one batch. In a distributed run, the batches of this process.
        precision: Precision of the convolutions. Reported metrics are computed in fp32.
        cpu_kernels: Whether CPU kernels may compute the network.
        should_stop: Polled at every batch.
        ctx: The processes; each of them returns the metrics of the whole split.

    Raises:
        Stopped: ``should_stop`` became true, in any process.
    """
    scores: list[Scores] = []
    num_classes = 0
    stopped = False
    with _evaluation_mode(model):
        network, layout = prepare_for_inference(model, precision=precision, cpu_kernels=cpu_kernels)
        try:
            for images, labels in batches:
                if stopped := should_stop():
                    break
                with torch.autocast(
                    images.device.type, torch.bfloat16, enabled=precision == "bf16"
                ):
                    logits = network(images.contiguous(memory_format=layout)).float()
                scores.append(score(logits, labels))
                num_classes = logits.shape[1]
        except Stopped:  # while images were waited for
            stopped = True
    if any(ctx.any_reduce(stopped)):
        raise Stopped("stopped during an evaluation")
    if ctx.world_size > 1:
        scores, num_classes = _gather_scores(ctx, scores, num_classes)
    return compute_metrics(scores, num_classes, precision)


def evaluate_images(
    model: nn.Module,
    images: ImageSource,
    data: DataSplits,
    *,
    batch_size: int,
    precision: Precision = "fp32",
    cpu_kernels: bool = True,
    should_stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Metrics:
    """Evaluate ``model`` on one split of a dataset, as :func:`evaluate` does.

    Args:
        model: The network, on its device.
        images: The split.
        data: The dataset, whose mean and standard deviation normalise the images.
        batch_size: Images per batch.
        precision: Precision of the convolutions.
        cpu_kernels: Whether CPU kernels may compute the network.
        should_stop: Polled at every batch.
        ctx: The processes, each of which evaluates its part of the images.

    Raises:
        Stopped: ``should_stop`` became true, in any process.
    """
    # Running statistics of batch norms differ from process to process.
    ctx.broadcast_buffers(model)
    batches = evaluation_batches(
        images,
        batch_size=batch_size,
        mean=data.mean,
        std=data.std,
        device=next(model.parameters()).device,
        shard=ctx.shard,
    )
    return evaluate(
        model,
        batches,
        precision=precision,
        cpu_kernels=cpu_kernels,
        should_stop=should_stop,
        ctx=ctx,
    )


def prepare_for_inference(
    model: nn.Module, *, precision: Precision = "fp32", cpu_kernels: bool = True
) -> tuple[nn.Module, torch.memory_format]:
    """Return the fastest form of a network for inference, and the memory format of its input.

    Args:
        model: The network, in evaluation mode; it is not changed.
        precision: Precision in which it is computed.
        cpu_kernels: Whether CPU kernels may compute it.
    """
    device = next(model.parameters()).device
    layout = MEMORY_FORMATS[memory_format(device)]
    network = fuse_conv_bn(model)
    if network is not model:
        network.to(memory_format=layout)
    if cpu_kernels:
        network = accelerate(network, training=False, precision=precision)
    return network, layout


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


def _gather_scores(
    ctx: DistributedContext, scores: list[Scores], num_classes: int
) -> tuple[list[Scores], int]:
    """Return the scores of all processes, in the order of the images.

    The scores of single images are exchanged, not their sums: sums give no confusion matrix, and
    their rounding depends on the number of processes.
    """
    own = [Scores(*(tensor.cpu() for tensor in batch)) for batch in scores]
    gathered = ctx.all_gather((own, num_classes))  # a process without images knows no classes
    return [one for batches, _ in gathered for one in batches], max(n for _, n in gathered)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    # Only some layers may be in training mode: frozen ones are not.
    training = [layer for layer in model.modules() if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
