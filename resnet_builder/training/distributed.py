"""Distributed training: the process group, and what its processes tell each other.

``torchrun``, or ``--nproc`` through it, tells each process its rank by environment variables. The
main process (rank 0) alone reads and writes the run directory, and prints.
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
from resnet_builder.data.loader import Shard
from resnet_builder.errors import ProcessLostError, Stopped, UsageError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective; the end of a process is noticed at once."""

_POLL_SECONDS = 0.05
_MAIN_FIRST_SECONDS = 2.0
"""Time that the main process is given to report an error before another process does."""

_REPORTED, _CODE = "resnet-builder/reported", "resnet-builder/exit-code"


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """Process group of a training, as one of its processes sees it.

    Every process calls the methods that communicate at the same points, in the same order. A
    single process communicates with nobody.

    Attributes:
        rank: Index of this process.
        world_size: Number of processes.
        local_rank: Index of this process among those of its machine.
        local_world_size: Number of processes on this machine.
        store: Key-value store that all processes read and write.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store: Store | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0, the only one that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """Shard of each global batch that this process computes."""
        return Shard(self.rank, self.world_size)

    def broadcast_object(self, value: T) -> T:
        """Return the main process's value; the other processes' values are ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_main(self, compute: Callable[[], T]) -> T:
        """Return the result of a function that only the main process calls."""
        return self.broadcast_object(compute() if self.is_main_process else cast(T, None))

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce(self, numbers: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.world_size > 1:
            dist.all_reduce(numbers)

    def any_reduce(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether any process set it. Waits for no device."""
        if self.world_size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy the main process's buffers: each process has running statistics of its own.

        Args:
            network: The same network in every process.
        """
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def data_parallel(self, network: nn.Module, *, has_unused: bool) -> nn.Module:
        """Wrap a network in DistributedDataParallel; a single process gets the network itself.

        Args:
            network: The network on its device; it takes over the main process's weights.
            has_unused: Whether there are parameters that no gradient reaches. DDP then searches
                for them in every step, which takes time.
        """
        if self.world_size == 1:
            return network
        wrapped = DistributedDataParallel(
            network,
            find_unused_parameters=has_unused,
            gradient_as_bucket_view=True,
        )
        # Running statistics stay each process's own. Not set by argument: torch 2.14 renamed it.
        wrapped.broadcast_buffers = False
        return wrapped

    @contextmanager
    def main_process_first(self, stop: Stop) -> Iterator[None]:
        """Context that the first process of each machine leaves before the others enter it.

        It downloads and scans the data; the others find that done.

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
            time.sleep(_POLL_SECONDS)
        yield
        if self.local_rank == 0:
            self.store.set(key, "done")

    def may_report(self, exit_code: int) -> bool:
        """Return whether this process is the one that prints why all processes end.

        Args:
            exit_code: Exit code of this process, for the launcher.
        """
        if self.store is None:
            return True
        try:
            deadline = time.monotonic() + (0 if self.is_main_process else _MAIN_FIRST_SECONDS)
            while time.monotonic() < deadline and not self.store.check([_REPORTED]):
                time.sleep(_POLL_SECONDS)
            if self.store.add(_REPORTED, 1) != 1:
                return False
            self.store.set(_CODE, str(exit_code))
        except RuntimeError:  # the process that kept the store is gone
            return self.is_main_process
        return True


SINGLE_PROCESS = DistributedContext()


def from_env(environment: Mapping[str, str] = os.environ) -> DistributedContext:
    """Return the process group that ``torchrun``'s environment variables describe.

    Nothing is sent yet; :func:`init_process_group` does that.

    Raises:
        UsageError: The variables are not numbers, or contradict each other.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return SINGLE_PROCESS
    given = {
        "RANK": environment["RANK"],
        "WORLD_SIZE": environment["WORLD_SIZE"],
        "LOCAL_RANK": environment.get("LOCAL_RANK", environment["RANK"]),
        "LOCAL_WORLD_SIZE": environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]),
    }
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    try:
        rank, size, local_rank, local_size = map(int, given.values())
    except ValueError as error:
        raise UsageError(f"torchrun's environment variables must be numbers: {found}") from error
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UsageError(f"torchrun's environment variables contradict each other: {found}")
    return DistributedContext(rank, size, local_rank, local_size) if size > 1 else SINGLE_PROCESS


@contextmanager
def init_process_group(ctx: DistributedContext) -> Iterator[DistributedContext]:
    """Context in which this process is connected to the others.

    After an error the connections stay until the process ends: an orderly shutdown needs all
    processes.

    Args:
        ctx: The result of :func:`from_env`.

    Raises:
        ProcessLostError: A process did not come, is gone, or has not answered for long.
    """
    if ctx.world_size == 1:
        yield ctx
        return
    with process_loss_reported():
        store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
        )
        yield DistributedContext(rank, size, ctx.local_rank, ctx.local_world_size, store)
        dist.destroy_process_group()


@contextmanager
def process_loss_reported() -> Iterator[None]:
    """Context that turns torch's errors about a lost process into :class:`ProcessLostError`.

    Raises:
        ProcessLostError: A process is gone, or has not answered for long.
    """
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo have no type of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ProcessLostError(
            "a process of this training is gone, or has not answered for "
            f"{TIMEOUT.total_seconds() / 60:.0f} minutes"
        ) from error


def reported_code(store: Store) -> int | None:
    """Return the exit code of the process that printed why all processes end, if one did."""
    return int(store.get(_CODE)) if store.check([_CODE]) else None
