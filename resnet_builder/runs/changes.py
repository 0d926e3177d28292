"""What may change in a spec between a run and its resumption."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from resnet_builder.spec.schema import Spec

Kind = Literal["cosmetic", "trajectory", "architecture"]

COSMETIC = (
    "name",
    "run",
    "published",
    "expect",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
)
"""Changing these does not change the weights; ``run`` is checked where choices are repeated."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs between two specs.

    Attributes:
        path: Where, as ``train.optimizer.lr``.
        before: In the run.
        after: In the spec it is to be resumed with.
        kind: ``cosmetic`` goes on, ``trajectory`` needs consent, ``architecture`` is refused.
    """

    path: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.path}: {self.before} in the run, {self.after} in the spec"


def compare_specs(before: Spec, after: Spec) -> list[Change]:
    """List what differs between a run's spec and another, both resolved."""
    pairs = _differing("", before.model_dump(), after.model_dump())
    return [Change(path, old, new, _kind(path)) for path, old, new in pairs]


def _differing(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            inner = f"{path}.{key}" if path else key
            yield from _differing(inner, before.get(key), after.get(key))
    elif isinstance(before, tuple | list) and len(before) == len(after or ()):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differing(f"{path}[{index}]", old, new)
    elif before != after:
        yield path, before, after


def _kind(path: str) -> Kind:
    if any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in COSMETIC):
        return "cosmetic"
    return "trajectory" if path.startswith(("train", "data", "plugins")) else "architecture"
