"""What a training will take of memory and disk, before any of it is taken."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import nn

from resnet_builder.activations import activation_memory
from resnet_builder.builder import build_on_meta
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import Precision, free_memory
from resnet_builder.errors import ResourceError, StorageError
from resnet_builder.model import ResNet
from resnet_builder.parts import input_info, resolve
from resnet_builder.runs.files import Warn, storage_errors
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.recipe import AdamW, OptimizerSpec, Sgd
from resnet_builder.spec.schema import Spec
from resnet_builder.system import free_disk, is_out_of_memory
from resnet_builder.training.finetune import freeze

OVERRIDE = "--ignore-memory-estimate"
"""The flag of ``train`` and ``validate`` that goes on in spite of an estimate."""

SHARE = 0.8
"""Of the memory that is free, what an estimate may come to."""

HEAP = 1.35
"""What the heap grows to, over what is alive at its fullest.

Between steps it is kept, not given back (see :func:`training.runtime.set_backend_flags`), and what a layer
frees serves another only if that fits into it. Which does depends on chance: from 1.2 to 1.6 was
measured (``benchmarks/results/resources.json``).
"""

KERNELS = 16 * 2**20
"""Kernels that oneDNN makes for a network's shapes, and pages of libraries that it first uses."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a process that trains is expected to take, in bytes, at its fullest moment.

    Attributes:
        name: The spec's.
        batch_size: Images per optimizer step.
        accumulate: Parts that a process computes its share of a batch in.
        processes: That share every batch out among them.
        precision: What is computed in.
        parameters: Parameters and buffers.
        gradients: Of what is trained.
        optimizer: What it remembers.
        copies: The moving average, and the weights that did best on validation.
        activations: What is kept for the backward pass, with the gradients of a layer on top.
        overhead: Kernels, and memory that is free but fits nothing.
        images: The data set's; until they are loaded the training images alone, or 0 where it is
            not known how many there are.
        checkpoint: One, on the disk.
        disk: All that a run keeps there at one time.
    """

    name: str
    batch_size: int
    accumulate: int
    processes: int
    precision: Precision
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
    def images_at_a_time(self) -> int:
        """How many images a process computes together."""
        return self.batch_size // (self.accumulate * self.processes)

    @property
    def steps(self) -> int:
        """What the steps add to what is there before the first of them."""
        return self.gradients + self.optimizer + self.activations + self.overhead

    @property
    def network(self) -> int:
        """All but the data set's images."""
        return self.parameters + self.copies + self.steps

    @property
    def memory(self) -> int:
        """All of it, without what the program takes by itself."""
        return self.network + self.images

    def with_images(self, images: int) -> int:
        """Return what all but the data set would take with other ``images_at_a_time``.

        It is rather too much with fewer of them: of what is kept, half the size of the weights may
        be their copies in bf16, which are kept however many images there are.
        """
        fixed = self.parameters // 2 if self.precision == "bf16" else 0
        change = (self.activations - fixed) * (images - self.images_at_a_time)
        return self.network + round(HEAP * change / self.images_at_a_time)

    def largest_part(self, limit: int) -> int:
        """Return how many images can be computed at a time within ``limit``, in bytes."""
        none, one = self.with_images(0), self.with_images(1)
        return max(0, (limit - none) // (one - none))

    def table(self) -> str:
        """List what takes how much, a line each."""
        what = f"activations of {self.images_at_a_time:,} images, {self.precision}"
        rows = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "copies of the weights": self.copies,
            what: self.activations,
            "kernels and heap": self.overhead,
            "images of the data set": self.images,
        }
        sizes = {name: size_text(size) for name, size in rows.items() if size}
        left, right = max(map(len, sizes)), max(map(len, sizes.values()))
        return "\n".join(f"  {name:<{left}}  {size:>{right}}" for name, size in sizes.items())


def size_text(count: int) -> str:
    """Write a number of bytes for people."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.1f} MiB"


def estimate_training(
    spec: Spec, precision: Precision, *, processes: int = 1, network: ResNet | None = None
) -> Estimate:
    """Estimate what a process that trains takes; nothing is computed, no memory taken for it.

    Measured against it were 16 trainings on a CPU, without ``torch.compile``, which takes less.

    Args:
        spec: The experiment, with data and recipe.
        precision: What it is computed in.
        processes: That share every batch out among them.
        network: The spec's, on the meta device, if it is there already; it is put in training
            mode, and what the recipe freezes of it is frozen.

    Raises:
        UsageError: The recipe freezes what the network does not have, or all of it.
    """
    spec = resolve(spec)
    assert spec.train is not None, "a spec to train has a recipe"
    if network is None:
        network = build_on_meta(spec.model)
    freeze(network.train(), spec.train.freeze)
    part = spec.train.batch_size // (spec.train.accumulate * processes)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    optimizer = state_copies(spec.train.optimizer) * trained
    copies = ((spec.train.ema is not None) + _is_validated(spec)) * weights
    activations = _activations(spec, network, part, precision)
    checkpoint = weights + optimizer + copies
    return Estimate(
        name=spec.name,
        batch_size=spec.train.batch_size,
        accumulate=spec.train.accumulate,
        processes=processes,
        precision=precision,
        parameters=weights,
        gradients=trained,
        optimizer=optimizer,
        copies=copies,
        activations=activations,
        overhead=KERNELS + round((HEAP - 1) * (trained + optimizer + activations)),
        images=_expected_images(spec),
        checkpoint=checkpoint,
        disk=checkpoint * (spec.train.keep_checkpoints + 2) + 2 * weights,
    )


def _activations(spec: Spec, network: nn.Module, images: int, precision: Precision) -> int:
    batch = max(2, images)  # batch norm refuses to train on one pixel of one image
    shape = (batch, *spec.model.image_shape)
    assert spec.train is not None, "a spec to train has a recipe"
    recomputed = spec.train.activation_checkpointing
    if recomputed == "all":
        recomputed = tuple(name for name, _ in network.named_children() if name.startswith("layer"))
    return activation_memory(network, shape, bf16=precision == "bf16", recomputed=recomputed).peak


def _is_validated(spec: Spec) -> bool:
    assert spec.data is not None, "a spec to train has data"
    return spec.data.validation != 0 or input_info(spec.data).own_validation is not False


def _expected_images(spec: Spec) -> int:
    assert spec.data is not None, "a spec to train has data"
    facts = input_info(spec.data)
    return (facts.training_images or 0) * prod(spec.model.image_shape)


def state_copies(spec: OptimizerSpec) -> int:
    """Return the number of values in an optimizer's state for each parameter."""
    match spec:
        case Sgd(momentum=momentum):
            return int(momentum > 0)
        case AdamW():
            return 2
        case _:
            return 1


def image_bytes(splits: DataSplits) -> int:
    """Return what the images of all splits take of memory; streamed ones take none for long."""
    sources = (splits.train, splits.validation, splits.test)
    return sum(source.images.nbytes for source in sources if isinstance(source, InMemoryImages))


def check_memory(
    estimate: Estimate, device: torch.device, *, processes: int = 1, held: int = 0
) -> None:
    """Refuse a training that will not find the memory it needs.

    Args:
        estimate: What it takes.
        device: Where it is computed.
        processes: That are to find room in this machine's memory; each has a GPU of its own.
        held: Bytes of the data set's images that this process has in memory already.

    Raises:
        ResourceError: It comes to more than a share of what is free.
    """
    free = free_memory(device)
    if free is None:
        return
    needed, images = estimate.network, 0
    if device.type == "cpu":
        free = free // processes + held
        needed, images = estimate.memory, estimate.images
    limit = round(SHARE * free)
    if needed > limit:
        raise ResourceError(
            f"{estimate.name} does not fit into memory: training is estimated to take "
            f"{size_text(needed)}, and {SHARE:.0%} of the {size_text(free)} that are free are "
            f"{size_text(limit)}\n{estimate.table()}\n"
            f"{_mend(estimate, limit - images)}; {OVERRIDE} tries it all the same"
        )


def _mend(estimate: Estimate, limit: int) -> str:
    """Say what would fit."""
    part = estimate.largest_part(limit)
    if part == 0:
        return "no batch would fit: the network or the data set is too large"
    share = estimate.batch_size // estimate.processes
    accumulate = _divisor(share, -(-share // part))
    largest = part * estimate.accumulate * estimate.processes
    return (
        f"the largest train.batch_size that would fit is {largest}; so would this one in smaller "
        f"parts, with train.accumulate={accumulate}"
    )


def _divisor(number: int, least: int) -> int | None:
    """Return the smallest divisor that is not below ``least``."""
    return next((size for size in range(least, number + 1) if number % size == 0), None)


def check_disk(estimate: Estimate, place: Path, warn: Warn) -> None:
    """Refuse a training that could not be saved even once, and tell of one that may not be later.

    Args:
        estimate: What it takes.
        place: Where its directory is, or will be made.
        warn: Told if the disk may become full on the way.

    Raises:
        StorageError: There is not room for two checkpoints.
    """
    with storage_errors("look for room at", place):
        free = free_disk(place)
    one, all_ = size_text(estimate.checkpoint), size_text(estimate.disk)
    if free < 2 * estimate.checkpoint:
        raise StorageError(
            f"no room for two checkpoints of {one} each at {place}: {size_text(free)} are free; "
            "make room, or choose another place"
        )
    if free < estimate.disk:
        warn(f"a run keeps up to {all_} at {place}, and {size_text(free)} are free")


@contextmanager
def memory_named(spec: Spec, choices: RuntimeConfig) -> Iterator[None]:
    """Turn what torch raises when memory runs out into an error that says what to change.

    Raises:
        ResourceError: Memory ran out inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the step's activations
        raise ResourceError(_after_the_fact(spec, choices)) from error


def _after_the_fact(spec: Spec, choices: RuntimeConfig) -> str:
    """Say what was too much, what it was estimated to be, and what would take less."""
    estimate = estimate_training(spec, choices.precision, processes=choices.world_size)
    return (
        f"out of memory at {estimate.images_at_a_time:,} images at a time (batch_size "
        f"{estimate.batch_size}, accumulate {estimate.accumulate}); training is estimated to take "
        f"{size_text(estimate.memory)}\n{estimate.table()}\n{_less(estimate)}"
    )


def _less(estimate: Estimate) -> str:
    """Say what would take less."""
    share = estimate.batch_size // estimate.processes
    accumulate = _divisor(share, estimate.accumulate + 1)
    if accumulate is None:
        return "take a smaller network, or a device with more memory"
    part = share // accumulate
    size = size_text(estimate.with_images(part) + estimate.images)
    return (
        f"train.accumulate={accumulate} takes about {size}, and so does "
        f"train.batch_size={part * estimate.accumulate * estimate.processes}"
    )
