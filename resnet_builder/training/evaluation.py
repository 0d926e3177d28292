"""Evaluating a network on a split, without training's randomness and without dropping an image."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import Stop, never
from resnet_builder.device import full_precision
from resnet_builder.errors import Stopped
from resnet_builder.model import fuse_conv_bn
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.metrics import Evaluation, Scores, score, summarise
from resnet_builder.training.runtime import MEMORY_FORMATS, memory_format


@full_precision()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    cpu_kernels: bool = True,
    stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Evaluation:
    """Evaluate ``model`` on every image of ``batches``; each layer's mode is left as it was.

    Batch norms are folded into the convolutions before them, which changes logits by rounding.

    Args:
        model: The network, on the batches' device.
        batches: ``(B, C, H, W)`` float32 normalised images and ``(B,)`` int64 labels; at
            least one batch. Of several processes, each is given its share of them.
        bf16: Whether to compute in bf16; reported numbers are computed in fp32.
        cpu_kernels: Whether CPU kernels may compute it, where there are any.
        stop: Polled at every batch.
        ctx: The processes; each gets the whole evaluation.

    Raises:
        Stopped: ``stop`` became true, in any of them.
    """
    scores: list[Scores] = []
    labels: list[Tensor] = []
    num_classes = 0
    stopped = False
    with _evaluating(model):
        network, layout = prepared(model, cpu_kernels=cpu_kernels, bf16=bf16)
        for images, answers in batches:
            if stopped := stop():
                break
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = network(images.contiguous(memory_format=layout)).float()
            scores.append(score(logits, answers))
            labels.append(answers)
            num_classes = logits.shape[1]
    if any(ctx.any_reduce(stopped)):
        raise Stopped("stopped during an evaluation")
    if ctx.world_size > 1:
        scores, labels, num_classes = _put_together(ctx, scores, labels, num_classes)
    return summarise(scores, torch.cat(labels), num_classes)


def _put_together(
    ctx: DistributedContext, scores: list[Scores], labels: list[Tensor], num_classes: int
) -> tuple[list[Scores], list[Tensor], int]:
    """Return what all processes scored, by rank, which is in the order of the images.

    Every image's own score goes to every process: sums would not give the confusions, and would
    depend on how many processes there are.
    """
    own = ([Scores(*(part.cpu() for part in one)) for one in scores], [x.cpu() for x in labels])
    shares = ctx.all_gather((own, num_classes))  # no classes are known where there was no image
    gathered_scores = [one for (found, _), _ in shares for one in found]
    gathered_labels = [one for (_, found), _ in shares for one in found]
    return gathered_scores, gathered_labels, max(number for _, number in shares)


def prepared(
    model: nn.Module, *, cpu_kernels: bool, bf16: bool = False
) -> tuple[nn.Module, torch.memory_format]:
    """Return what computes a network fastest in evaluation, and the layout to feed it in.

    Args:
        model: The network, in evaluation mode; it is left as it was.
        cpu_kernels: Whether CPU kernels may compute it.
        bf16: Whether it is computed in bf16, and not in fp32.
    """
    device = next(model.parameters()).device
    layout = MEMORY_FORMATS[memory_format(device)]
    network = fuse_conv_bn(model)
    if network is not model:
        network.to(memory_format=layout)
    if cpu_kernels:
        precision: Literal["fp32", "bf16"] = "bf16" if bf16 else "fp32"
        network = accelerate(network, training=False, precision=precision)
    return network, layout


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [layer for layer in model.modules() if layer.training]  # frozen ones are not
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
