"""How many images a step can have that is measured in the time there is."""

from dataclasses import dataclass

import torch

from resnet_builder.bench.plain import PlainLoop
from resnet_builder.spec.schema import Spec

FEWEST = 2
"""Images at a time: batch norm refuses to train on one pixel of one image."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a step.

    Attributes:
        batch_size: Images.
        accumulate: Parts that they are computed in.
    """

    batch_size: int
    accumulate: int

    @property
    def part_size(self) -> int:
        """Images that are computed at a time."""
        return self.batch_size // self.accumulate


def measurable_size(spec: Spec, device: torch.device, seconds: float, *, most: int) -> Size:
    """Return the recipe's own step, or a smaller one if that would take too long or too much.

    The plain loop is tried with more and more images; ours is hardly ever slower.

    Args:
        spec: The experiment, resolved, with a recipe.
        device: Where to compute.
        seconds: That a step may take.
        most: Images that memory has room for at a time; not fewer than the fewest.
    """
    assert spec.train is not None, "a spec to train has a recipe"
    wanted = Size(spec.train.batch_size, spec.train.accumulate)
    plain = PlainLoop(spec, device)
    images, limit = min(FEWEST, wanted.part_size), min(most, wanted.part_size)
    while images < limit and 2 * _step_seconds(plain, images, seconds / 2) <= seconds:
        images = min(2 * images, limit)
    if images < wanted.part_size:
        return Size(images, 1)
    is_quick = wanted.accumulate * _step_seconds(plain, images, seconds) <= seconds
    return wanted if is_quick else Size(images, 1)


def _step_seconds(plain: PlainLoop, images: int, limit: float) -> float:
    """Time a step; once more if it seems too long, for the first of its kind makes kernels."""
    first = plain.turn(images, 0)
    return first if first <= limit else min(first, plain.turn(images, 0))
