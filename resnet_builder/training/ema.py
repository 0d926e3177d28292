"""An exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn

from resnet_builder.spec.train_section import EmaSpec


class Ema:
    """The moving average of a network: itself a network, and the one to evaluate.

    It starts as a copy. Each update moves parameters and floating-point buffers (running
    statistics, so that they fit the averaged weights) by ``1 - decay`` of the way to the
    network's, and copies whole-number buffers. When it was last updated follows from the step:
    there is no counter to lose.

    Args:
        model: The network that is trained, on its device and in its memory format.
        spec: Decay and interval.

    Attributes:
        model: The averaged network, in evaluation mode.
    """

    def __init__(self, model: nn.Module, spec: EmaSpec) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._spec = spec
        self._averaged, self._copied = _divide(self.model)
        self._averaged_from, self._copied_from = _divide(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, if it is their turn."""
        if step % self._spec.every:
            return
        torch._foreach_lerp_(self._averaged, self._averaged_from, 1 - self._spec.decay)
        if self._copied:
            torch._foreach_copy_(self._copied, self._copied_from)


def _divide(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return a network's floating-point tensors and its others, in one order for all copies."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [tensor.detach() for tensor in tensors if tensor.is_floating_point()],
        [tensor.detach() for tensor in tensors if not tensor.is_floating_point()],
    )
