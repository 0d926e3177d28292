"""Every bug: ours does not have it, and the check that says so finds it planted."""

import importlib

import pytest

from tests.known_bugs import TOPICS
from tests.known_bugs.bugs import BUGS, Bug

for topic in TOPICS:
    importlib.import_module(f"tests.known_bugs.{topic}")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_ours_does_not_have(bug: Bug) -> None:
    bug.check(bug.ours)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_planted_again_it_is_found(bug: Bug) -> None:
    with pytest.raises(AssertionError):
        bug.check(bug.planted)
