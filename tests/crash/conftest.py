"""Fixtures of the tests that kill the program."""

import sys
from collections.abc import Iterator

import pytest

from tests.crash.program import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return what calls the program in forked children."""
    if sys.platform != "linux":
        pytest.skip("it looks into /proc, and forks")
    with serving(tmp_path_factory.mktemp("calls")) as server:
        yield server
