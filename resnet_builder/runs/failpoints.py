"""Named points of the save path, at which a test can fail or kill the process.

A test replaces :data:`hook`; in a program it does nothing.
"""

from collections.abc import Callable

POINTS = (
    "created",
    "written",
    "synced",
    "closed",
    "verified",
    "replaced",
    "published",
    "rotated",
)
"""In the order in which saving a checkpoint passes them."""


def _nothing(name: str) -> None:
    """Let the program go on."""


hook: Callable[[str], None] = _nothing


def failpoint(name: str) -> None:
    """Pass the point ``name``, one of :data:`POINTS`."""
    hook(name)
