"""What is minimised."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from resnet_builder.spec.recipe import LossSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(B, K)`` float32 logits and ``(B,)`` labels or ``(B, K)`` probabilities to their mean loss."""


def make_loss(spec: LossSpec) -> Loss:
    """Make a loss from its spec."""

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=spec.label_smoothing)

    return cross_entropy
