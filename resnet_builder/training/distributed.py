"""Several processes that train one network: how they find each other, agree, and add up.

Whoever starts them, ``torchrun`` or this program, tells each its place by the environment variables
of ``torchrun``. The leader, process 0, alone reads and writes the run directory, and prints.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from resnet_builder.data.interfaces import Stop
from resnet_builder.data.share import Shard
from resnet_builder.device import pick_device
from resnet_builder.errors import ProcessLostError, Stopped, UsageError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""For processes that do not answer; the end of one is noticed at once."""

_PAUSE = 0.05
_COURTESY = 2.0
"""Seconds that the leader is given to say first why all end."""

_REPORTED, _CODE = "resnet-builder/reported", "resnet-builder/exit-code"


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """The processes that train one network, as one of them sees them.

    Every process calls the methods that send something at the same points, in the same order.
    Alone, nothing is sent.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        local_rank: The number among those of this machine.
        local_size: How many there are on this machine.
        store: What all can read and write, by key.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Store | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0, which alone writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> Shard:
        """What this process computes of every batch."""
        return Shard(self.rank, self.size)

    def broadcast_object(self, value: T) -> T:
        """Return the leader's value; it does not matter what the others give."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_main(self, compute: Callable[[], T]) -> T:
        """Return what the leader computes; the others wait for it."""
        return self.broadcast_object(compute() if self.is_main_process else cast(T, None))

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all, by rank."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Tell of each flag whether it is set in any process; devices are not waited for."""
        if self.size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def all_reduce(self, numbers: Tensor) -> None:
        """Replace numbers by their sums over all processes."""
        if self.size > 1:
            dist.all_reduce(numbers)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give a network's buffers the leader's values: running statistics are each process's own.

        Args:
            network: The same network in every process.
        """
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def parallel(self, network: nn.Module, *, has_unused: bool) -> nn.Module:
        """Return what computes a network and averages its gradients over all processes.

        Args:
            network: On its device, and with the leader's weights from then on.
            has_unused: Whether there are parameters that no gradient reaches; looking for them
                takes time.
        """
        if self.size == 1:
            return network
        wrapped = DistributedDataParallel(
            network,
            find_unused_parameters=has_unused,
            gradient_as_bucket_view=True,
        )
        # Statistics stay each process's own. Not by the argument: torch 2.14 renamed it.
        wrapped.broadcast_buffers = False
        return wrapped

    @contextmanager
    def machine_by_machine(self, stop: Stop) -> Iterator[None]:
        """Let the first process of each machine finish what its others then find done.

        Raises:
            Stopped: ``stop`` became true while waiting.
        """
        if self.store is None:
            yield
            return
        key = f"resnet-builder/first-of-{self.rank - self.local_rank}"
        while self.local_rank > 0 and not self.store.check([key]):
            if stop():
                raise Stopped("stopped while another process was preparing the data")
            time.sleep(_PAUSE)
        yield
        if self.local_rank == 0:
            self.store.set(key, "done")

    def may_report(self, exit_code: int) -> bool:
        """Tell whether this process is the one to say why all of them end: only one is.

        Args:
            exit_code: What it is going to end with, for whoever started the processes.
        """
        if self.store is None:
            return True
        try:
            deadline = time.monotonic() + (0 if self.is_main_process else _COURTESY)
            while time.monotonic() < deadline and not self.store.check([_REPORTED]):
                time.sleep(_PAUSE)
            if self.store.add(_REPORTED, 1) != 1:
                return False
            self.store.set(_CODE, str(exit_code))
        except RuntimeError:  # whoever kept the store is gone
            return self.is_main_process
        return True


SINGLE_PROCESS = DistributedContext()


def reported_code(store: Store) -> int | None:
    """Return what the process that reported why all end was going to end with, if one did."""
    return int(store.get(_CODE)) if store.check([_CODE]) else None


def place(environment: Mapping[str, str] = os.environ) -> DistributedContext:
    """Read from the environment which of several processes this is; nothing is sent.

    Raises:
        UsageError: The environment contradicts itself.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return SINGLE_PROCESS
    numbers = {
        name: environment.get(name, default)
        for name, default in (
            ("RANK", ""),
            ("WORLD_SIZE", ""),
            ("LOCAL_RANK", environment["RANK"]),
            ("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]),
        )
    }
    if not all(number.isdecimal() for number in numbers.values()):
        told = ", ".join(f"{name}={number}" for name, number in numbers.items())
        raise UsageError(f"the environment names no place among processes: {told}")
    rank, size, local_rank, local_size = map(int, numbers.values())
    if not (rank < size and local_rank < local_size <= size):
        raise UsageError(f"the environment says that this is process {rank} of {size}")
    return DistributedContext(rank, size, local_rank, local_size) if size > 1 else SINGLE_PROCESS


@contextmanager
def joined(ctx: DistributedContext) -> Iterator[DistributedContext]:
    """Meet the other processes, until the training is left.

    After an error the connections stay until the process ends: leaving in good order takes all.

    Args:
        ctx: The place of this process.

    Raises:
        ProcessLostError: One did not come, is gone, or has not answered for long.
    """
    if ctx.size == 1:
        yield ctx
        return
    with losses_named():
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        yield DistributedContext(rank, size, ctx.local_rank, ctx.local_size, store)
        dist.destroy_process_group()


@contextmanager
def losses_named() -> Iterator[None]:
    """Turn what torch raises when another process is gone into an error that says so.

    Raises:
        ProcessLostError: One is gone, or has not answered for long.
    """
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo have no type of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ProcessLostError(
            "a process of this training is gone, or has not answered for "
            f"{PATIENCE.total_seconds() / 60:.0f} minutes"
        ) from error


def own_device(name: str, ctx: DistributedContext) -> torch.device:
    """Return the device that a process computes on: with several, its own GPU or the CPU.

    Args:
        name: A torch device, or ``"auto"``.
        ctx: The processes.

    Raises:
        UsageError: There is no such device, or not one for each process.
    """
    device = pick_device(name)
    if ctx.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or ":" in name:
        raise UsageError(
            f"{ctx.size} processes cannot train on `run.device: {name}`; give `cuda` or `cpu`"
        )
    count = torch.cuda.device_count()
    if ctx.local_size > count:
        raise UsageError(f"{ctx.local_size} processes need as many GPUs, and there are {count}")
    own = torch.device("cuda", ctx.local_rank)
    torch.cuda.set_device(own)
    return own


def own_threads(ctx: DistributedContext) -> int:
    """Return how many threads a process is to compute with, so that all find cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min(torch.get_num_threads(), cores // ctx.local_size))


def refuse_unequal_parts(batch_size: int, accumulate: int, ctx: DistributedContext) -> None:
    """Do nothing if a batch falls to the processes in equal parts.

    Raises:
        UsageError: It does not.
    """
    if batch_size % (ctx.size * accumulate):
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        raise UsageError(
            f"train.batch_size: {batch_size} images cannot be divided among {ctx.size} "
            f"processes{parts}; give a multiple of {ctx.size * accumulate}"
        )
