"""Processes that train together, forked by one that has imported all there is to import.

The tests' own process cannot fork them: once it has computed gradients, its children cannot.
"""

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from resnet_builder.errors import ResnetBuilderError
from resnet_builder.training.distributed import from_env, init_process_group

T = TypeVar("T")

forked = pytest.mark.skipif(sys.platform != "linux", reason="it forks")

HERE = "127.0.0.1"

_IMPORTED_BY_TRAINING = (
    "torch._dynamo",
    "torchvision.transforms.v2.functional",
)


def in_team(
    work: Callable[..., T], folder: Path, *arguments: object, size: int = 2
) -> list[T | ResnetBuilderError]:
    """Return what ``work(ctx, *arguments)`` comes to in each of several processes, by rank."""
    from torch._C._distributed_c10d import TCPStore  # torch.distributed's, which mypy does not see

    multiprocessing.set_forkserver_preload([work.__module__, *_IMPORTED_BY_TRAINING])
    folder.mkdir(exist_ok=True)
    store = TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    start_processes(
        _member, (work, folder, arguments, size, store.port), size, start_method="forkserver"
    )
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def results(found: list[T | ResnetBuilderError]) -> list[T]:
    """Return what processes came to, none of which failed."""
    results: list[T] = []
    for one in found:
        assert not isinstance(one, ResnetBuilderError), one
        results.append(one)
    return results


def _member(
    rank: int,
    work: Callable[..., object],
    folder: Path,
    arguments: tuple[Any, ...],
    size: int,
    port: int,
) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(rank, size, port).items():
            patch.setenv(name, value)
        result: object
        try:
            with init_process_group(from_env()) as ctx:
                result = work(ctx, *arguments)
        except ResnetBuilderError as error:
            result = error
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what ``torchrun`` sets for a process, where its agent keeps the store."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {
        **{name: str(number) for name, number in numbers.items()},
        "MASTER_ADDR": HERE,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
