"""Reading the spec that a command is about, in an order that keeps early errors fast."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_builder.spec.schema import Spec


def read_spec(
    source: str | Path,
    *,
    overrides: tuple[str, ...],
    with_: tuple[str, ...],
    plugins: tuple[str, ...],
    warn: Callable[[str], None],
    with_weights: bool = False,
) -> "Spec":
    """Read a spec, check it in full, and write out its defaults.

    What is no YAML is refused before torch is imported, which takes seconds.

    Args:
        source: A path, or a bundled spec's name.
        overrides: What ``--set`` gave.
        with_: What ``--with`` gave.
        plugins: What ``--plugin`` gave.
        warn: Told what the user should know of the spec.
        with_weights: Whether to check that the weights it starts from are there.

    Raises:
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    from resnet_builder.spec.loading import read_draft

    for notice in read_draft(source, overrides=overrides, with_=with_).notices:
        warn(notice)

    from resnet_builder import builder

    return builder.read_spec(
        source, overrides=overrides, with_=with_, plugins=plugins, with_weights=with_weights
    )
