"""What the tests of this room need of the machine."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernels import NEEDS_KERNELS


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip this room's tests where nothing compiles kernels."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(NEEDS_KERNELS)
