"""Fixtures of the tests of CPU kernels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.cpu import NEEDS_KERNELS


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip the tests of this folder where nothing compiles kernels."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(NEEDS_KERNELS)


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
