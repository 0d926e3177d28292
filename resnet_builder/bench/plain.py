"""The plain training loop that ours is compared with."""

import itertools

import torch
from torch import Tensor

from resnet_builder.bench.clock import seconds_per_call
from resnet_builder.builder import build
from resnet_builder.spec.schema import Spec
from resnet_builder.training.finetune import freeze
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.step import make_loss

WHAT = (
    "fp32, torch's own memory layout, not compiled, weights updated tensor by tensor, the loss "
    "read after every step, batches ready in memory"
)
"""How it computes, in words."""

_BATCHES = 4


class PlainLoop:
    """Trains a spec's network as a script does that nobody has tuned.

    The network, loss, optimizer, threads and allocator are ours; its batches are ready, so that it
    spends nothing on reading and augmenting.

    Args:
        spec: The experiment, resolved, with a recipe.
        device: Where to compute.

    Raises:
        UsageError: The recipe freezes what the network does not have, or all of it.
    """

    def __init__(self, spec: Spec, device: torch.device) -> None:
        assert spec.train is not None, "a spec to train has a recipe"
        self._model = spec.model
        self._device = device
        self._network = build(spec, seed=0, device=str(device), pretrained=False).train()
        freeze(self._network, spec.train.freeze)
        self._loss = make_loss(spec.train.loss)
        self._optimizer = build_optimizer(
            self._network,
            spec.train.optimizer,
            no_weight_decay=spec.train.no_weight_decay,
            fused=False,
            head_lr_multiplier=spec.train.head_lr_multiplier,
        )

    def turn(self, images: int, seconds: float) -> float:
        """Train for some seconds, at least one step; return the seconds of a step.

        Args:
            images: In each batch.
            seconds: How long.
        """
        batches = itertools.cycle(self._make_batches(images))
        return seconds_per_call(lambda: self._step(next(batches)), self._device, seconds)

    def _step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        self._optimizer.zero_grad()
        loss = self._loss(self._network(images), labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        loss.item()

    def _make_batches(self, images: int) -> list[tuple[Tensor, Tensor]]:
        shape = (images, self._model.in_channels or 0, *[self._model.image_size or 0] * 2)
        return [
            (
                torch.randn(shape, device=self._device),
                torch.randint(self._model.num_classes, (images,), device=self._device),
            )
            for _ in range(_BATCHES)
        ]
