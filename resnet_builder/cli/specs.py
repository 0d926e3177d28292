"""Reading the spec that a command is about, in an order that keeps early errors fast."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_builder.errors import SpecError

if TYPE_CHECKING:
    from resnet_builder.spec.schema import Spec


def read_spec(
    source: str | Path,
    *,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    warn: Callable[[str], None],
    with_weights: bool = False,
) -> "Spec":
    """Read a spec, check it in full, and write out its defaults.

    What is no YAML, or has a number out of its range, is refused before torch is imported, which
    takes seconds.

    Args:
        source: A path, or a bundled spec's name.
        overrides: What ``--set`` gave.
        fragments: What ``--with`` gave.
        plugins: What ``--plugin`` gave.
        warn: Told what the user should know of the spec.
        with_weights: Whether to check that the weights it starts from are there.

    Raises:
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    for notice in first_notices(source, overrides=overrides, fragments=fragments):
        warn(notice)

    from resnet_builder import builder

    return builder.read_spec(
        source, overrides=overrides, fragments=fragments, plugins=plugins, with_weights=with_weights
    )


def first_notices(
    source: str | Path, *, overrides: tuple[str, ...], fragments: tuple[str, ...]
) -> tuple[str, ...]:
    """Check what can be checked without torch; return what the user should know of the spec.

    Most problems wait for those that only the second half of checking finds. Numbers beyond their
    bounds do not: with them, there is nothing that it should build.

    Raises:
        SpecError: There is nothing to check, or a number is out of its range.
        StorageError: A file cannot be read.
    """
    from resnet_builder.spec.load import read_draft

    draft = read_draft(source, overrides=overrides, fragments=fragments)
    if any(problem.code in {"out-of-range", "limit"} for problem in draft.problems):
        raise SpecError(draft.problems)
    return draft.notices
