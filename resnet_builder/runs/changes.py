"""What may change in a spec between a run and its resumption."""

from dataclasses import dataclass
from typing import Any, Literal

from resnet_builder.problems import dotted
from resnet_builder.spec.differences import Difference, spec_differences
from resnet_builder.spec.dump import dump_value, plain_data
from resnet_builder.spec.schema import Spec

Kind = Literal["cosmetic", "trajectory", "architecture"]

COSMETIC = (
    "name",
    "run",
    "published",
    "expect",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)
"""Changing these does not change the weights; ``run`` is checked where choices are repeated."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs between two specs.

    Attributes:
        path: Where, as ``train.optimizer.lr``.
        before: In the run, as plain data; ``None`` if it is absent there.
        after: In the spec it is to be resumed with, likewise.
        kind: ``cosmetic`` goes on, ``trajectory`` needs consent, ``architecture`` is refused.
    """

    path: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        before, after = (
            "nothing" if value is None else dump_value(value) for value in (self.before, self.after)
        )
        return f"{self.path}: {before} in the run, {after} in the spec"


def compare_specs(before: Spec, after: Spec) -> list[Change]:
    """List what differs between a run's spec and another, both resolved."""
    return [_change(difference) for difference in spec_differences(before, after)]


def _change(difference: Difference) -> Change:
    path = dotted(difference.path)
    before, after = plain_data(difference.before), plain_data(difference.after)
    return Change(path, before, after, _kind(path))


def _kind(path: str) -> Kind:
    if any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in COSMETIC):
        return "cosmetic"
    return "trajectory" if path.startswith(("train", "data", "plugins")) else "architecture"
