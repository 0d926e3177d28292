"""Memory and disk estimate of a training, made on meta before any of it is taken."""

import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from resnet_builder.device import Precision, free_memory
from resnet_builder.errors import ResourceError, StorageError, counted
from resnet_builder.experiment import Experiment
from resnet_builder.model import distinct_blocks, sections
from resnet_builder.parts import input_info
from resnet_builder.runs.files import Warn, storage_errors
from resnet_builder.spec.recipe import Adam, AdamW, OptimizerSpec, Sgd
from resnet_builder.system import free_disk, is_out_of_memory

_SHARE = 0.8  # of the free memory, which an estimate may come to without a warning

# Size of the heap at its fullest, relative to the living tensors. What a layer frees serves
# another only if that fits into it, which depends on chance: 16 trainings had from 1.2 to 1.6.
_HEAP = 1.35

# Kernels that oneDNN generates for a network's shapes, and pages of libraries first used by it.
_KERNELS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory that a training process is expected to take at its fullest moment, in bytes.

    Attributes:
        batch_size: Images of a step.
        accumulate: Micro-batches of a step.
        processes: Number of processes that divide each batch.
        parameters: Parameters and buffers.
        gradients: Gradients of the parameters that are trained; in bf16, also their copies that
            autocast makes.
        optimizer: State of the optimizer.
        copies: Moving average of the weights, and the best weights on validation.
        activations: Activations saved for the backward pass, and the gradients of one layer.
        images: Images of the dataset; 0 where their number is not known.
        keep_checkpoints: Number of checkpoints that a run keeps.
    """

    batch_size: int
    accumulate: int
    processes: int
    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    images: int
    keep_checkpoints: int

    @property
    def micro_batch_size(self) -> int:
        """Images that a process computes at a time."""
        return self.batch_size // (self.accumulate * self.processes)

    @property
    def steps(self) -> int:
        """Memory that the steps add to what is there before the first of them."""
        return _KERNELS + round(_HEAP * (self.gradients + self.optimizer + self.activations))

    @property
    def memory(self) -> int:
        """All memory, without the program itself."""
        return self.parameters + self.copies + self.steps + self.images

    @property
    def checkpoint(self) -> int:
        """A checkpoint on the disk."""
        return self.parameters + self.optimizer + self.copies

    @property
    def disk(self) -> int:
        """All files of a run on the disk, at their most: checkpoints, best and last weights."""
        return self.checkpoint * (self.keep_checkpoints + 2) + 2 * self.parameters

    def largest_micro_batch(self, limit: int) -> int:
        """Return the number of images that can be computed at a time within ``limit`` bytes."""
        one = _HEAP * self.activations / self.micro_batch_size
        return max(0, int(self.micro_batch_size + (limit - self.memory) / one))


def size_text(count: int) -> str:
    """Format a number of bytes."""
    for unit, size, least in (("GiB", 2**30, 2**30), ("MiB", 2**20, 2**17)):
        if count >= least:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def estimate_training(
    experiment: Experiment, precision: Precision, *, processes: int = 1
) -> MemoryEstimate:
    """Estimate the memory of a training process, without computing anything.

    The estimate was within a fifth of the memory of 16 trainings on a CPU. ``torch.compile`` takes
    less.

    Args:
        experiment: The experiment.
        precision: Precision of the activations.
        processes: Number of processes that divide each batch.
    """
    recipe, network, is_bf16 = experiment.train, experiment.network, precision == "bf16"
    # A copy of the network would take seconds for 1,202 layers, even on meta.
    frozen = [layer for name in recipe.freeze for layer in sections(network)[name]]
    for layer in map(network.get_submodule, frozen):
        layer.requires_grad_(False).eval()
    try:
        trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
        activations = activation_memory(
            network,
            # Batch norm refuses to train on one pixel of one image.
            (
                max(2, recipe.batch_size // (recipe.accumulate * processes)),
                *experiment.input_shape,
            ),
            checkpointed=recipe.activation_checkpointing,
        )
    finally:
        for layer in map(network.get_submodule, frozen):
            layer.requires_grad_(True).train()
    info = input_info(experiment.data)
    is_validated = experiment.data.validation != 0 or info.own_validation is not False
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return MemoryEstimate(
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        processes=processes,
        parameters=weights,
        gradients=trained + trained // 2 if is_bf16 else trained,
        optimizer=state_copies(recipe.optimizer) * trained,
        copies=((recipe.ema is not None) + is_validated) * weights,
        # Autocast halves activations, and copies each weight.
        activations=activations.peak // 2 if is_bf16 else activations.peak,
        images=(info.training_images or 0) * prod(experiment.input_shape),
        keep_checkpoints=recipe.keep_checkpoints,
    )


def state_copies(spec: OptimizerSpec) -> int:
    """Return the number of values in an optimizer's state for each parameter."""
    if isinstance(spec, Sgd):
        return int(spec.momentum > 0)
    return 2 if isinstance(spec, Adam | AdamW) else 1  # Muon, and the SGD beside it, have momentum


def memory_warning(
    estimate: MemoryEstimate, device: torch.device, *, processes: int = 1
) -> str | None:
    """Return a warning if a training is not expected to fit into memory.

    Args:
        estimate: Its memory estimate.
        device: Device of the training.
        processes: Processes that share this machine's memory; each has a GPU of its own.
    """
    free = free_memory(device)
    if free is None:
        return None
    if device.type == "cpu":
        free //= processes
    else:
        estimate = replace(estimate, images=0)  # a GPU need not hold the dataset
    if estimate.memory <= _SHARE * free:
        return None
    largest = estimate.largest_micro_batch(round(_SHARE * free))
    return (
        f"training may not fit into memory: {_parts(estimate)}, and {size_text(free)} are free; "
        f"{_smaller_batch(estimate, largest)}"
    )


def _parts(estimate: MemoryEstimate) -> str:
    return (
        f"it is estimated to take {size_text(estimate.memory)} ({size_text(estimate.activations)} "
        f"of activations for {counted(estimate.micro_batch_size, 'image')} at a time, "
        f"{size_text(estimate.images)} of data)"
    )


def _smaller_batch(estimate: MemoryEstimate, micro_batch: int) -> str:
    """Advice that makes a process compute at most ``micro_batch`` images at a time."""
    if micro_batch < 1:
        return "no batch fits: use a smaller network or dataset, or a device with more memory"
    share = estimate.batch_size // estimate.processes
    accumulate = next(n for n in range(-(-share // micro_batch), share + 1) if share % n == 0)
    return (
        "what fits is train.batch_size="
        f"{micro_batch * estimate.accumulate * estimate.processes}, or, with the same batches, "
        f"train.accumulate={accumulate}"
    )


def check_disk(estimate: MemoryEstimate, place: Path, warn: Warn) -> None:
    """Check that two checkpoints fit on the disk, and warn if a whole run may not.

    Args:
        estimate: The estimate of the training.
        place: The run directory, or where it will be.
        warn: Called if the disk may become full.

    Raises:
        StorageError: There is no room for two checkpoints.
    """
    with storage_errors("look for room at", place):
        free = free_disk(place)
    # Two, because a checkpoint is written in full before the one before it is removed.
    if free < 2 * estimate.checkpoint:
        raise StorageError(
            f"no room for two checkpoints of {size_text(estimate.checkpoint)} each at {place}: "
            f"{size_text(free)} are free; make room, or choose another place"
        )
    if free < estimate.disk:
        warn(
            f"a run keeps up to {size_text(estimate.disk)} at {place}, and {size_text(free)} are "
            "free"
        )


@contextmanager
def out_of_memory_explained(
    experiment: Experiment, precision: Precision, *, processes: int = 1
) -> Iterator[None]:
    """Context that turns torch's out-of-memory errors into one that says what to change.

    Args:
        experiment: The experiment.
        precision: Precision of the activations.
        processes: Number of processes that divide each batch.

    Raises:
        ResourceError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the activations of the step
        estimate = estimate_training(experiment, precision, processes=processes)
        advice = _smaller_batch(estimate, estimate.micro_batch_size // 2)
        raise ResourceError(f"out of memory in training: {_parts(estimate)}; {advice}") from error


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """Bytes that a training step holds for its backward pass, without gradients of parameters.

    Attributes:
        saved: Tensors that the forward pass saves, parameters and buffers apart.
        peak: Largest number of bytes at a time: what is saved, the input and output of a layer or
            their gradients, and what a block with activation checkpointing computes again.
    """

    saved: int
    peak: int


def activation_memory(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    checkpointed: Collection[str] = (),
) -> ActivationMemory:
    """Return what a forward pass in fp32 saves for backward, without computing anything.

    Args:
        network: The network on the meta device, in training mode but for frozen sections.
        shape: Shape of the batch, ``(N, C, H, W)``.
        checkpointed: Names of stages with activation checkpointing, or ``"all"``.
    """
    weights = [*network.parameters(), *network.buffers()]
    own = {tensor.untyped_storage()._cdata for tensor in weights}
    held: dict[int, Tensor] = {}  # by storage; kept, so that no other storage gets its address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = tensor
        return tensor

    saved, largest, recomputed = 0, 0, 0
    images = torch.empty(shape, device="meta")
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        for section, block, count in distinct_blocks(network):
            before = len(held)
            inputs, images = images, block(images)
            kept = sum(t.untyped_storage().nbytes() for t in list(held.values())[before:])
            if section.startswith("layer") and (checkpointed == "all" or section in checkpointed):
                recomputed = max(recomputed, kept)
                kept = inputs.nbytes
            saved += count * kept
            largest = max(largest, images.nbytes)
    peak = saved + 2 * largest + recomputed
    return ActivationMemory(saved, peak)
