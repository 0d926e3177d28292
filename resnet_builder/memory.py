"""Memory and disk estimate of a training, made on meta before any of it is taken."""

import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from resnet_builder.device import free_memory
from resnet_builder.errors import ResourceError, StorageError
from resnet_builder.experiment import Experiment
from resnet_builder.model import deduplicate_blocks, sections
from resnet_builder.parts import input_info
from resnet_builder.runs.files import Warn, storage_errors
from resnet_builder.spec.recipe import AdamW, OptimizerSpec, Sgd
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
        name: Name of the spec.
        batch_size: Images of a step.
        accumulate: Micro-batches of a step.
        processes: Number of processes that divide each batch.
        precision: Precision of the activations.
        parameters: Parameters and buffers.
        gradients: Gradients of the parameters that are trained.
        optimizer: State of the optimizer.
        copies: Moving average of the weights, and the best weights on validation.
        activations: Activations saved for the backward pass, and the gradients of one layer.
        overhead: Kernels, and fragmentation of the heap.
        images: Images of the dataset; 0 where their number is not known.
        checkpoint: A checkpoint on the disk.
        disk: All files of a run on the disk, at their most.
    """

    name: str
    batch_size: int
    accumulate: int
    processes: int
    precision: Literal["fp32", "bf16"]
    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    overhead: int
    images: int
    checkpoint: int
    disk: int

    @property
    def micro_batch_size(self) -> int:
        """Images that a process computes at a time."""
        return self.batch_size // (self.accumulate * self.processes)

    @property
    def steps(self) -> int:
        """Memory that the steps add to what is there before the first of them."""
        return self.gradients + self.optimizer + self.activations + self.overhead

    @property
    def network(self) -> int:
        """All memory but the images of the dataset."""
        return self.parameters + self.copies + self.steps

    @property
    def memory(self) -> int:
        """All memory, without the program itself."""
        return self.network + self.images

    def with_images(self, images: int) -> int:
        """Return the value of ``network`` for another micro-batch size."""
        # Activations in bf16 include a bf16 copy of the weights, however few the images.
        fixed = self.parameters // 2 if self.precision == "bf16" else 0
        change = (self.activations - fixed) * (images - self.micro_batch_size)
        return self.network + round(_HEAP * change / self.micro_batch_size)

    def largest_micro_batch(self, limit: int) -> int:
        """Return the number of images that can be computed at a time within ``limit`` bytes."""
        none, one = self.with_images(0), self.with_images(1)
        return max(0, (limit - none) // (one - none))

    def table(self) -> str:
        """Format the parts of the estimate as lines of text."""
        rows = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "copies of the weights": self.copies,
            f"activations of {self.micro_batch_size:,} images, {self.precision}": self.activations,
            "kernels and heap": self.overhead,
            "images of the dataset": self.images,
        }
        sizes = {name: size_text(size) for name, size in rows.items() if size}
        left, right = max(map(len, sizes)), max(map(len, sizes.values()))
        return "\n".join(f"  {name:<{left}}  {size:>{right}}" for name, size in sizes.items())


def size_text(count: int) -> str:
    """Format a number of bytes."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.1f} MiB"


def estimate_training(
    experiment: Experiment, precision: Literal["fp32", "bf16"], *, processes: int = 1
) -> MemoryEstimate:
    """Estimate the memory of a training process, without computing anything.

    The estimate was within a fifth of the memory of 16 trainings on a CPU. ``torch.compile`` takes
    less.

    Args:
        experiment: The experiment.
        precision: Precision of the activations.
        processes: Number of processes that divide each batch.
    """
    recipe, network = experiment.train, experiment.network
    micro_batch = recipe.batch_size // (recipe.accumulate * processes)
    checkpointed = recipe.activation_checkpointing
    if checkpointed == "all":
        checkpointed = tuple(sections(network).keys() - {"stem", "head"})
    # A copy of the network would take seconds for 1,202 layers, even on meta.
    frozen = [layer for name in recipe.freeze for layer in sections(network)[name]]
    for layer in map(network.get_submodule, frozen):
        layer.requires_grad_(False).eval()
    try:
        trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
        activations = activation_memory(
            network,
            # Batch norm refuses to train on one pixel of one image.
            (max(2, micro_batch), *experiment.input_shape),
            bf16=precision == "bf16",
            checkpointed=checkpointed,
        ).peak
    finally:
        for layer in map(network.get_submodule, frozen):
            layer.requires_grad_(True).train()
    info = input_info(experiment.data)
    is_validated = experiment.data.validation != 0 or info.own_validation is not False
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    optimizer = state_copies(recipe.optimizer) * trained
    copies = ((recipe.ema is not None) + is_validated) * weights
    checkpoint = weights + optimizer + copies
    return MemoryEstimate(
        name=experiment.name,
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        processes=processes,
        precision=precision,
        parameters=weights,
        gradients=trained,
        optimizer=optimizer,
        copies=copies,
        activations=activations,
        overhead=_KERNELS + round((_HEAP - 1) * (trained + optimizer + activations)),
        images=(info.training_images or 0) * prod(experiment.input_shape),
        checkpoint=checkpoint,
        disk=checkpoint * (recipe.keep_checkpoints + 2) + 2 * weights,
    )


def state_copies(spec: OptimizerSpec) -> int:
    """Return the number of values in an optimizer's state for each parameter."""
    if isinstance(spec, Sgd):
        return int(spec.momentum > 0)
    return 2 if isinstance(spec, AdamW) else 1  # Muon, and the SGD beside it, have momentum


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
    # A GPU need not hold the dataset.
    needed, images = estimate.network, 0
    if device.type == "cpu":
        free //= processes
        needed, images = estimate.memory, estimate.images
    limit = round(_SHARE * free)
    if needed <= limit:
        return None
    return (
        f"{estimate.name} may not fit into memory: training is estimated to take "
        f"{size_text(needed)}, and {size_text(free)} are free\n{estimate.table()}\n"
        f"{_largest_batch(estimate, limit - images)}"
    )


def _largest_batch(estimate: MemoryEstimate, limit: int) -> str:
    micro_batch = estimate.largest_micro_batch(limit)
    if micro_batch == 0:
        return "no batch fits: the network or the dataset is too large"
    share = estimate.batch_size // estimate.processes
    largest = micro_batch * estimate.accumulate * estimate.processes
    return (
        f"the largest train.batch_size that fits is {largest}; this one fits in smaller "
        f"micro-batches, with train.accumulate={_divisor(share, -(-share // micro_batch))}"
    )


def _divisor(number: int, least: int) -> int | None:
    """Return the smallest divisor that is not below ``least``."""
    return next((size for size in range(least, number + 1) if number % size == 0), None)


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
    experiment: Experiment, precision: Literal["fp32", "bf16"], *, processes: int = 1
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
        raise ResourceError(
            f"out of memory at {estimate.micro_batch_size:,} images at a time (batch_size "
            f"{estimate.batch_size}, accumulate {estimate.accumulate}); training is estimated to "
            f"take {size_text(estimate.memory)}\n{estimate.table()}\n{_smaller_batch(estimate)}"
        ) from error


def _smaller_batch(estimate: MemoryEstimate) -> str:
    share = estimate.batch_size // estimate.processes
    accumulate_more = _divisor(share, estimate.accumulate + 1)
    if accumulate_more is None:
        return "use a smaller network, or a device with more memory"
    micro_batch = share // accumulate_more
    size = size_text(estimate.with_images(micro_batch) + estimate.images)
    batch = micro_batch * estimate.accumulate * estimate.processes
    return (
        f"train.accumulate={accumulate_more} takes about {size}, and so does "
        f"train.batch_size={batch}"
    )


@dataclass
class ActivationMemory:
    """Tensors that a forward pass saves for the backward pass.

    Attributes:
        saved: Bytes of each tensor, parameters and buffers apart, in order.
        largest_output: Bytes of the largest output of a layer, saved or not.
        recomputed: Largest number of bytes that a block with activation checkpointing saves while
            its gradients are computed.
    """

    saved: list[int] = field(default_factory=list)
    largest_output: int = 0
    recomputed: int = 0

    @property
    def total(self) -> int:
        """Bytes of all saved tensors."""
        return sum(self.saved)

    @property
    def peak(self) -> int:
        """Largest number of bytes that are held at a time, without gradients of parameters.

        When the backward pass comes to the n-th saved tensor, those before are still there, and so
        are the gradients of a layer's output and input, of about its size. Where little is saved,
        a layer's input and output in the forward pass are more.
        """
        backward = (
            held + 2 * size for held, size in zip(accumulate(self.saved), self.saved, strict=True)
        )
        return max(2 * self.largest_output, *backward, 0) + self.recomputed


def activation_memory(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    bf16: bool = False,
    checkpointed: Collection[str] = (),
) -> ActivationMemory:
    """Return what a forward pass saves for the backward pass, without computing anything.

    Equal blocks of a stage save the same: one of them is followed for all.

    Args:
        network: The network on the meta device, in training mode but for frozen sections.
        shape: Shape of the batch, ``(N, C, H, W)``.
        bf16: Whether activations are bf16.
        checkpointed: Names of stages with activation checkpointing.
    """
    memory = ActivationMemory()
    with deduplicate_blocks(network) as repeats, _hooked(network, repeats, checkpointed, memory):
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        try:
            # On meta, autocast changes no dtype; fake tensors of the CPU take no memory either.
            with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                fake = {
                    name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
                    for name, t in tensors.items()
                }
                _forward(network, fake, torch.empty(shape), memory)
        except Exception:  # a plugin may hold a tensor that does not go together with fake ones
            memory.saved.clear()
            _forward(network, tensors, torch.empty(shape, device="meta"), memory)
    return memory


def _forward(
    network: nn.Module, tensors: dict[str, Tensor], images: Tensor, memory: ActivationMemory
) -> None:
    """Run a forward pass, and record the tensors that autograd saves."""
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in held:
            held[storage._cdata] = tensor  # so that no other storage gets the same address
            memory.saved.append(storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        functional_call(network, tensors, (images,))


@contextmanager
def _hooked(
    network: nn.Module,
    repeats: Mapping[str, int],
    checkpointed: Collection[str],
    memory: ActivationMemory,
) -> Iterator[None]:
    """Context with hooks that record outputs, checkpointed blocks, and blocks that stand for N."""
    starts: dict[str, int] = {}

    def measure(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            memory.largest_output = max(memory.largest_output, output.untyped_storage().nbytes())

    def enter(name: str, *_: object) -> None:
        starts[name] = len(memory.saved)

    def forget(name: str, _block: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        start = starts[name]
        memory.recomputed = max(memory.recomputed, sum(memory.saved[start:]))
        memory.saved[start:] = [inputs[0].untyped_storage().nbytes()]

    def repeat(name: str, *_: object) -> None:
        memory.saved.extend(memory.saved[starts[name] :] * (repeats[name] - 1))

    forgotten = [
        f"{stage}.{name}"
        for stage in checkpointed
        for name, _ in network.get_submodule(stage).named_children()
    ]
    with ExitStack() as hooks:
        for layer in network.modules():
            hooks.enter_context(layer.register_forward_hook(measure))
        for name in {*forgotten, *repeats}:
            block = network.get_submodule(name)
            hooks.enter_context(block.register_forward_pre_hook(partial(enter, name)))
        # A repeated block is first reduced to its input, if it is checkpointed, and then counted.
        for names, hook in ((forgotten, forget), (repeats, repeat)):
            for name in names:
                block = network.get_submodule(name)
                hooks.enter_context(block.register_forward_hook(partial(hook, name)))
        yield
