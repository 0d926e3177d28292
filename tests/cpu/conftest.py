"""What the tests of this room need of the machine."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.cpu import NEEDS_KERNELS


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip this room's tests where nothing compiles kernels."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(NEEDS_KERNELS)


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    """Let a test of this room set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
