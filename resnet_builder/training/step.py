"""Training step: forward, backward, clipping and update, on the device from beginning to end."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import Batch
from resnet_builder.device import MEMORY_FORMATS
from resnet_builder.losses import Loss
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.finetune import checkpoint_activations, freeze
from resnet_builder.training.optim import build_optimizer, set_lr
from resnet_builder.training.runtime import compile_network
from resnet_builder.training.schedule import seed_step


class TrainStep:
    """Training step of a network and a recipe. It never waits for the device.

    Once a loss or a gradient is not finite, no weight and no optimizer state changes any more.
    A fused optimizer checks that on the device, by the flag ``found_inf``; for the others the host
    reads the flag before each update.

    Args:
        model: The network, on its device and in its memory format. Sections that the recipe
            freezes are frozen, all others are put into training mode.
        loss: The loss, on the same device.
        recipe: The recipe.
        runtime: Precision, CPU kernels and compilation.
        resize: Resizing of the images of a step (progressive resizing).
        ctx: The processes, each of which computes its shard of the batch.
        has_unused: Whether the network has parameters that no gradient reaches.

    Attributes:
        optimizer: The optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        recipe: TrainSpec,
        runtime: RuntimeConfig,
        *,
        resize: Callable[[Tensor, int], Tensor] = lambda images, step: images,
        ctx: DistributedContext = SINGLE_PROCESS,
        has_unused: bool = False,
    ) -> None:
        freeze(model.train(), recipe.freeze)
        self.optimizer = build_optimizer(
            model,
            recipe.optimizer,
            no_weight_decay=recipe.no_weight_decay,
            fused=runtime.fused,
            head_lr_multiplier=recipe.head_lr_multiplier,
        )
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        device = self._parameters[0].device
        self._failed = torch.zeros((), device=device)
        if runtime.fused:
            self.optimizer.found_inf = self._failed  # type: ignore[attr-defined]  # as GradScaler
        self._forward, self._no_sync = _wrap(model, recipe, runtime, device, ctx, has_unused)
        self._loss = loss
        self._recipe = recipe
        self._runtime = runtime
        self._resize = resize
        self._ctx = ctx

    def __call__(self, batch: Batch, *, step: int, lr: float) -> Tensor:
        """Make update number ``step + 1``.

        Args:
            batch: Augmented images and their targets.
            step: Updates done before; it seeds the random numbers of the network.
            lr: Learning rate.

        Returns:
            ``(3,)`` float32, on the device: mean loss, number of images predicted correctly, and
            1 if anything was not finite in this step or before, else 0. The same in all processes.
        """
        set_lr(self.optimizer, lr)
        seed_step(self._recipe.seed, step, self._failed.device, rank=self._ctx.rank)
        self.optimizer.zero_grad()
        loss, num_correct = self._backward(replace(batch, images=self._resize(batch.images, step)))
        norm = self._clip()
        self._failed.logical_or_(~(loss.isfinite() & norm.isfinite()))
        if self._runtime.fused or not self._failed.item():
            self.optimizer.step()
        return torch.stack((loss, num_correct, self._failed))

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the gradient of a batch; return the mean loss and the correct predictions."""
        loss, num_correct = torch.zeros_like(self._failed), torch.zeros_like(self._failed)
        count = self._recipe.accumulate
        parts = batch.targets.chunk(count)
        micro_batches = zip(batch.images.chunk(count), parts, self._divisors(parts), strict=True)
        for number, (micro_images, micro_targets, divisor) in enumerate(micro_batches, start=1):
            # Gradients of several processes are summed once, with the last micro-batch.
            with nullcontext() if number == count else self._no_sync():
                micro_loss, logits = self._backward_part(micro_images, micro_targets, divisor)
            loss += micro_loss
            num_correct += _num_correct(logits, micro_targets, multi_label=batch.multi_label)
        totals = torch.stack((loss / self._ctx.world_size, num_correct))
        self._ctx.all_reduce(totals)
        return totals[0], totals[1]

    def _divisors(self, parts: Sequence[Tensor]) -> Sequence[Tensor | int]:
        """Divisors of the losses of a batch's parts, which then add up to its mean loss."""
        weights = [self._loss.total_weight(targets) for targets in parts]
        known = [weight for weight in weights if weight is not None]
        if not known:
            return [self._recipe.accumulate] * len(parts)
        total = torch.stack(known).sum()
        self._ctx.all_reduce(total)
        # The gradients of several processes are averaged, not added.
        return [total / (weight * self._ctx.world_size) for weight in known]

    def _backward_part(
        self, images: Tensor, targets: Tensor, divisor: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of a micro-batch; return its share of the mean loss, and its logits."""
        layout = MEMORY_FORMATS[self._runtime.memory_format]
        bf16 = self._runtime.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = self._forward(images.contiguous(memory_format=layout))
        # The loss is computed in fp32: bf16 has too few digits for a sum over classes.
        loss: Tensor = self._loss(logits.float(), targets) / divisor
        torch.autograd.backward(loss)
        return loss.detach(), logits.detach()

    def _clip(self) -> Tensor:
        """Clip the gradient, if the recipe says so; return its norm before that."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._recipe.clip_norm, norm)
        return norm


def _wrap(
    model: nn.Module,
    recipe: TrainSpec,
    runtime: RuntimeConfig,
    device: torch.device,
    ctx: DistributedContext,
    has_unused: bool,
) -> tuple[Callable[[Tensor], Tensor], Callable[[], AbstractContextManager[None]]]:
    """Return what computes the network in training, and the context without all-reduce."""

    def accelerated(module: nn.Module) -> nn.Module:
        if runtime.cpu_kernels is None:
            return module
        return accelerate(module, training=True, precision=runtime.precision)

    network = accelerated(
        checkpoint_activations(model, recipe.activation_checkpointing, accelerated)
    )
    network = ctx.data_parallel(network, has_unused=has_unused)
    no_sync = network.no_sync if isinstance(network, DistributedDataParallel) else nullcontext
    return (compile_network(network, device) if runtime.compile else network), no_sync


def _num_correct(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Count correct predictions; the label of a mixed image is that of its larger part."""
    if multi_label:
        return ((logits > 0) == (targets > 0.5)).all(dim=1).sum()
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return (logits.argmax(dim=1) == labels).sum()
