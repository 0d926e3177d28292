"""Whether an exported file computes what its network computes, on random images."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resnet_builder.errors import NonFiniteError
from resnet_builder.trained import TrainedModel

Logits = Callable[[Tensor], Tensor]
"""Computes ``(N, num_classes)`` from ``(N, C, H, W)``, in fp32 on the CPU."""

BATCHES = (1, 7)
"""How many images are computed at once: one and several, neither of them as in tracing."""


@torch.no_grad()
def expected_logits(trained: TrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Compute what an exported file has to compute.

    Returns:
        Batches of images, ``(N, C, H, W)``, each with its logits, ``(N, num_classes)``.

    Raises:
        NonFiniteError: There are logits that are infinite or not a number.
    """
    generator = torch.Generator().manual_seed(0)
    shape = trained.spec.model.image_shape
    batches = [torch.randn(number, *shape, generator=generator) for number in BATCHES]
    expected = [(images, trained.network(images)) for images in batches]
    if not all(logits.isfinite().all() for _, logits in expected):
        raise NonFiniteError(f"{trained.path}: its logits of random images are not finite")
    return expected


@torch.no_grad()
def largest_difference(expected: Iterable[tuple[Tensor, Tensor]], compute: Logits) -> float:
    """Return by how much logits differ at most, as a fraction of the largest of their batch.

    Args:
        expected: Batches of images, each with its logits.
        compute: What is to compute the same.
    """
    return max(_difference(logits, compute(images)) for images, logits in expected)


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return infinity where there is no difference to be told: for NaN, and for other shapes."""
    if found.shape != expected.shape or not found.isfinite().all():
        return math.inf
    smallest = torch.finfo(expected.dtype).tiny  # a divisor where all logits are zero
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=smallest))
