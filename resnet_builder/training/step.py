"""One update of the weights, on the device from beginning to end."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import Batch
from resnet_builder.recomputing import recomputing
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.freezing import freeze
from resnet_builder.training.losses import Loss, make_loss
from resnet_builder.training.optim import build_optimizer, set_rate
from resnet_builder.training.randomness import seed_step
from resnet_builder.training.resizing import Resizing, unchanged
from resnet_builder.training.runtime import MEMORY_FORMATS, compile_network
from resnet_builder.training.schedule import Schedule

Forward = Callable[[Tensor], Tensor]


class TrainStep:
    """Updates a network's weights, one batch at a time, without waiting for the device.

    Once a loss or a gradient is not finite, no weight and no optimizer state changes any more.
    A fused optimizer sees to that on the device, by the flag it is given as ``found_inf``; for
    others the host has to look at the flag before each update.

    Args:
        model: The network, in training mode but for what is frozen.
        forward: How to compute it: itself, or compiled.
        loss: What is minimised.
        optimizer: What changes the weights.
        schedule: The learning rate of each step.
        seed: Of the network's own randomness.
        resize: Makes images of the size that each step is fed.
        accumulate: Equal parts that a batch is computed in.
        clip_norm: Largest norm of the whole gradient; ``None`` leaves it as it is.
        memory_format: The network's, in which it is fed.
        bf16: Whether the network computes in bf16.
        fused: Whether the optimizer is.
        ctx: The processes, each of which computes its part of the batch.
        unreduced: Leaves gradients to each process while it is entered, for all parts but the
            last.

    Attributes:
        optimizer: As given.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        seed: int,
        resize: Resizing = unchanged,
        accumulate: int = 1,
        clip_norm: float | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        bf16: bool = False,
        fused: bool = True,
        ctx: DistributedContext = SINGLE_PROCESS,
        unreduced: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._forward = forward
        self._loss = loss
        self.optimizer = optimizer
        self._schedule = schedule
        self._seed = seed
        self._resize = resize
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._memory_format = memory_format
        self._bf16 = bf16
        self._fused = fused
        self._team = ctx
        self._unreduced = unreduced
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._failed = torch.zeros((), device=self._parameters[0].device)
        if fused:
            optimizer.found_inf = self._failed  # type: ignore[attr-defined]  # as GradScaler does

    def __call__(self, step: int, batch: Batch) -> Tensor:
        """Make update number ``step + 1``.

        Returns:
            ``(3,)`` float32, on the device: mean loss, images answered right, and whether
            anything has not been finite yet, 0 or 1; of the whole batch in every process.
        """
        set_rate(self.optimizer, self._schedule(step))
        seed_step(self._seed, step, self._failed.device, rank=self._team.rank)
        self.optimizer.zero_grad()
        loss, hits = self._backward(self._resize(batch.images, step), batch.targets)
        norm = self._clip()
        self._failed.logical_or_(~(loss.isfinite() & norm.isfinite()))
        if self._fused or not self._failed.item():
            self.optimizer.step()
        return torch.stack((loss, hits, self._failed))

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the batch's gradient, part by part; return its mean loss and hits."""
        loss = torch.zeros_like(self._failed)
        hits = torch.zeros_like(self._failed)
        parts = (tensor.chunk(self._accumulate) for tensor in (images, targets))
        for number, (part, answers) in enumerate(zip(*parts, strict=True), start=1):
            with nullcontext() if number == self._accumulate else self._unreduced():
                part_loss, logits = self._backward_part(part, answers)
            loss += part_loss
            hits += _hits(logits, answers)
        totals = torch.stack((loss / self._team.world_size, hits))
        self._team.all_reduce(totals)
        return totals[0], totals[1]

    def _backward_part(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Add a part's gradient; return its share of the mean loss, and its logits."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self._forward(images.contiguous(memory_format=self._memory_format))
        loss = self._loss(logits.float(), targets) / self._accumulate
        torch.autograd.backward(loss)
        return loss.detach(), logits.detach()

    def _clip(self) -> Tensor:
        """Return the norm of the whole gradient as it was before it was clipped, if it was."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        return norm


def make_train_step(
    model: nn.Module,
    train: TrainSpec,
    schedule: Schedule,
    choices: RuntimeConfig,
    *,
    resize: Resizing = unchanged,
    ctx: DistributedContext = SINGLE_PROCESS,
    has_unused: bool = False,
) -> TrainStep:
    """Put a recipe's loss and optimizer together for a network.

    Args:
        model: The network, on its device and in its memory format; what the recipe freezes of it
            is frozen, and the rest put in training mode.
        train: The recipe.
        schedule: Its learning rate.
        choices: How to compute.
        resize: Makes images of the size that each step is fed.
        ctx: The processes that compute it.
        has_unused: Whether the network has parameters that no gradient reaches.

    Raises:
        UsageError: The recipe freezes what the network does not have, or all of it.
    """
    freeze(model.train(), train.freeze)
    network = recomputing(model, train.activation_checkpointing)
    if choices.cpu_kernels:
        network = accelerate(network, training=True, precision=choices.precision)
    network = ctx.data_parallel(network, has_unused=has_unused)
    device = next(model.parameters()).device
    return TrainStep(
        model,
        compile_network(network, device) if choices.compile else network,
        make_loss(train.loss),
        build_optimizer(
            model,
            train.optimizer,
            no_weight_decay=train.no_weight_decay,
            fused=choices.fused,
            head_lr_multiplier=train.head_lr_multiplier,
        ),
        schedule,
        seed=train.seed,
        resize=resize,
        accumulate=choices.accumulate,
        clip_norm=train.clip_norm,
        memory_format=MEMORY_FORMATS[choices.memory_format],
        bf16=choices.precision == "bf16",
        fused=choices.fused,
        ctx=ctx,
        unreduced=network.no_sync if isinstance(network, DistributedDataParallel) else nullcontext,
    )


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the answers that agree with the labels, or with the larger part of a mixed image."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (logits.argmax(dim=1) == labels).sum()
