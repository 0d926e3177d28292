"""Gradient error of a step in bf16, by CPU kernels and by torch.

    python benchmarks/gradient_error.py RUN [--data-dir DIR]

takes a finished run and its training images, and writes
``benchmarks/results/KIND/gradient_error_SPEC.json``: the relative distance of the gradient of all
convolution weights from fp64's, in bf16 by torch and by CPU kernels; and that of the next batch's
gradient, which is the noise of training by batches.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from common import describe_machine, open_finished_run, own_results, write
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.cpu import accelerate
from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits

BATCH_SIZE = 128
BATCHES = 9

Batch = tuple[Tensor, Tensor]


def main() -> None:
    """Compute each batch's gradients in three ways, and write how far they are from each other."""
    trained, splits = open_finished_run(__doc__)
    network = trained.network.train().to(memory_format=torch.channels_last)
    batches = list(batches_of(splits))
    exact = [gradient(network.double(), batch) for batch in batches]
    network.float()
    distances: dict[str, list[float]] = {
        "bf16, torch": distances_of(network, lambda twin: twin, batches, exact),
        "bf16, CPU kernels": distances_of(network, accelerated, batches, exact),
        "next batch": [distance(*pair) for pair in pairwise(exact)],
    }
    report = {
        "what": f"distance of a step's gradient of {trained.spec.name}'s kernels from fp64's, over "
        f"its length, median of {BATCHES - 1} batches of {BATCH_SIZE}",
        "machine": describe_machine(),
        "distance": {name: round(statistics.median(each), 4) for name, each in distances.items()},
        "each": {name: [round(one, 4) for one in each] for name, each in distances.items()},
    }
    write(own_results() / f"gradient_error_{trained.spec.name}.json", report)


def accelerated(network: nn.Module) -> nn.Module:
    """Return the network with its training kernels."""
    return accelerate(network, training=True, precision="bf16")


def batches_of(splits: DataSplits) -> Iterator[Batch]:
    """Yield some batches of training images, drawn at random."""
    assert isinstance(splits.train, InMemoryImages)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    images = splits.train.subset(order[: BATCHES * BATCH_SIZE])
    yield from evaluation_batches(
        images,
        batch_size=BATCH_SIZE,
        mean=splits.mean,
        std=splits.std,
        device=torch.device("cpu"),
    )


def distances_of(
    network: nn.Module,
    prepare: Callable[[nn.Module], nn.Module],
    batches: list[Batch],
    exact: list[Tensor],
) -> list[float]:
    """Return how far a way in bf16 is from what is exact, of each batch but the last."""
    prepared = prepare(copy.deepcopy(network))
    found = (gradient(prepared, batch, bf16=True) for batch in batches[:-1])
    return [distance(one, right) for one, right in zip(found, exact, strict=False)]


def gradient(network: nn.Module, batch: Batch, *, bf16: bool = False) -> Tensor:
    """Return the gradients of all kernels, one after the other, in fp64."""
    network.zero_grad()
    images, labels = batch
    (weight, *_) = network.parameters()
    images = images.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(images)
    F.cross_entropy(logits.to(weight.dtype), labels).backward()
    kernels = [weight.grad for weight in network.parameters() if weight.ndim == 4]
    return torch.cat([kernel.flatten().double() for kernel in kernels if kernel is not None])


def distance(found: Tensor, exact: Tensor) -> float:
    """Return how far a tensor is from another, over that one's length."""
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
