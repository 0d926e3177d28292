"""Evaluation of a network on a split of the images."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import ImageSource, Stop, never
from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import MEMORY_FORMATS, Precision, full_precision, memory_format
from resnet_builder.errors import Stopped
from resnet_builder.model import fuse_conv_bn
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.metrics import Metrics, Scores, compute_metrics, score


@full_precision()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: Precision = "fp32",
    cpu_kernels: bool = True,
    with_probabilities: bool = False,
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
        with_probabilities: Whether to keep the probabilities of all classes of each image.
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
                scores.append(score(logits, labels, with_probabilities=with_probabilities))
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
