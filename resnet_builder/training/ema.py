"""Exponential moving average (EMA) of the weights of a network."""

import copy
from collections.abc import Collection
from itertools import chain

import torch
from torch import Tensor, nn

from resnet_builder.errors import percent
from resnet_builder.spec.recipe import EmaSpec


class Ema:
    """Exponential moving average of a network: itself a network, and the one that is evaluated.

    It starts as a copy. Each update moves parameters and floating-point buffers (running
    statistics, so that they fit the averaged weights) by ``1 - decay`` of the way to the
    network's, and copies integer buffers and frozen tensors. The last update follows
    from the step: there is no counter to save.

    Args:
        model: The network that is trained, on its device and in its memory format.
        spec: Decay and interval.
        frozen: Names of parameters and buffers that training does not change.

    Attributes:
        model: The averaged network, in evaluation mode.
    """

    def __init__(
        self, model: nn.Module, spec: EmaSpec, *, frozen: Collection[str] = frozenset()
    ) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._spec = spec
        self._averaged, self._copied = _divide(self.model, frozen)
        self._averaged_from, self._copied_from = _divide(model, frozen)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after ``step`` steps, if an update is due."""
        if step % self._spec.every:
            return
        torch._foreach_lerp_(self._averaged, self._averaged_from, 1 - self._spec.decay)
        if self._copied:
            torch._foreach_copy_(self._copied, self._copied_from)


def initial_share(spec: EmaSpec, steps: int) -> float:
    """Return the share of the initial weights in the average after so many steps."""
    return spec.decay ** (steps // spec.every)


def slow_average(spec: EmaSpec, steps: int) -> str | None:
    """Return a warning if the average will be mostly the initial weights after a training."""
    share = initial_share(spec, steps)
    if share <= 0.5:
        return None
    return (
        f"train.ema: {percent(share, 0)} of the average will still be the initial weights at the "
        "end of this training; lower the decay"
    )


def _divide(model: nn.Module, frozen: Collection[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors to average and those to copy, in the same order for all copies."""
    averaged: list[Tensor] = []
    copied: list[Tensor] = []
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        moves = tensor.is_floating_point() and name not in frozen
        (averaged if moves else copied).append(tensor.detach())
    return averaged, copied
